"""`python -m ocak` is `ocak`."""

from ocak.cli.main import main

if __name__ == "__main__":
    main()
