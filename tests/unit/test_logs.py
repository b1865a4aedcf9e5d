import io
import json
import logging

import pytest

from ocak.telemetry.logs import set_up


@pytest.fixture
def restored():
    root = logging.getLogger()
    before = (root.level, root.handlers[:])
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    logging.captureWarnings(False)


def test_a_line_cannot_be_forged(restored):
    stream = io.StringIO()
    set_up(stream=stream)
    logging.getLogger("t").info("a\nb", extra={"fields": {"path": "/x\r\ny\x1b", "odd": "\ud800", "none": None}})
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    assert lines[0].endswith("INFO t a\\nb path=/x\\r\\ny\\x1b odd=\\ud800")


def test_a_json_line_is_one_object(restored):
    stream = io.StringIO()
    set_up(style="json", stream=stream)
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("t").exception("failed", extra={"fields": {"model": "m", "tokens": 3}})
    entry = json.loads(stream.getvalue())
    assert (entry["level"], entry["logger"], entry["message"]) == ("error", "t", "failed")
    assert (entry["model"], entry["tokens"]) == ("m", 3)
    assert "ValueError: broken" in entry["error"]


def test_the_level_is_kept(restored):
    stream = io.StringIO()
    set_up(level="warning", stream=stream)
    logging.getLogger("t").info("no")
    assert stream.getvalue() == ""
