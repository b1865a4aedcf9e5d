"""The benchmark harness: ocak beside its peers, measured in one run on one machine."""
