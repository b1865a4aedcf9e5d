"""Sets up logging: text for people, or one JSON object a line for machines. Never a prompt, never a key.

Call `set_up` once, at start. What a line knows beyond its message travels in `extra={"fields": {...}}`.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO

import msgspec

LogFormat = Literal["text", "json"]
MAX_FIELD_CHARACTERS = 300


def set_up(level: str = "info", style: LogFormat = "text", stream: TextIO | None = None) -> None:
    """Send the log of the whole process to `stream` (standard error)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)


class TextFormatter(logging.Formatter):
    """`12:03:04.567 INFO ocak.access answered id=… model=…`, on one line but for tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        fields = "".join(f" {name}={_one_line(value)}" for name, value in _fields(record).items())
        line = f"{when} {record.levelname} {record.name} {_one_line(record.getMessage())}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the record's fields, the error's traceback."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _whole_unicode(record.getMessage()),
            **_fields(record),
        }
        if record.exc_info:
            entry["error"] = _whole_unicode(self.formatException(record.exc_info))
        return msgspec.json.encode(entry, enc_hook=str).decode()


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = getattr(record, "fields", {})
    return {
        name: _whole_unicode(value)[:MAX_FIELD_CHARACTERS] if isinstance(value, str) else value
        for name, value in fields.items()
        if value is not None
    }


def _one_line(value: object) -> str:
    """Escape line ends and control characters, so that nobody can forge a line."""
    text = _whole_unicode(str(value))
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _whole_unicode(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
