"""`ocak ps`, `load`, `unload`, `pin`, `unpin` against a real server."""

import json
from pathlib import Path

from tests.cli.processes import ocak, serving


def test_models_come_and_go_by_command(tiny_model: Path, tmp_path: Path) -> None:
    config = tmp_path / "ocak.toml"
    config.write_text(
        f'[models.now]\nsource = "{tiny_model}"\npriority = "high"\n'
        f'[models.later]\nsource = "{tiny_model}"\npreload = false\nkeep_alive = 600\n'
    )
    with serving("--config", config) as server:
        assert "later  is loaded when it is asked for" in server.banner
        table = ocak("ps", "--url", server.url)
        now, later = (line for line in table.stdout.splitlines() if line.startswith(("now", "later")))
        assert "ready" in now and "high" in now and "unloaded" in later and "never" in later
        loaded = ocak("load", "later", "--url", server.url)
        assert loaded.returncode == 0 and loaded.stdout.startswith("later is ready (normal)"), loaded.stderr
        assert "in 10 min" in ocak("ps", "--url", server.url).stdout
        assert ocak("pin", "later", "--url", server.url).stdout.startswith("later is ready (pinned), ")
        models = json.loads(ocak("ps", "--json", "--url", server.url).stdout)["models"]
        assert {model["key"]: model["priority"] for model in models} == {"now": "high", "later": "pinned"}
        assert "(normal)" in ocak("unpin", "later", "--url", server.url).stdout
        assert ocak("unload", "later", "--url", server.url).stdout == "later is unloaded (normal)\n"
        nobody = ocak("load", "nobody", "--url", server.url)
        assert nobody.returncode == 1 and "404" in nobody.stderr and "nobody" in nobody.stderr


def test_without_a_server_the_error_names_its_address(tmp_path: Path) -> None:
    gone = ocak("ps", "--url", "http://127.0.0.1:9")
    assert gone.returncode == 1 and "cannot reach http://127.0.0.1:9" in gone.stderr


def test_a_model_beyond_the_memory_that_is_allowed_is_refused_with_the_way_out(tiny_model: Path) -> None:
    refused = ocak("serve", tiny_model, "--port", "0", "--memory-limit", "40MB")
    assert refused.returncode == 1
    assert "needs" in refused.stderr and "can be had" in refused.stderr and "Traceback" not in refused.stderr
    strange = ocak("serve", tiny_model, "--port", "0", "--memory-limit", "much")
    assert strange.returncode == 2 and "--memory-limit much" in strange.stderr
