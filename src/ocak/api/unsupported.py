"""Decides what happens to fields that ocak does not serve: refused, accepted in silence, or reported as ignored.

Refused when ignoring it would change what the answer means. A neutral value never harms.
"""

from __future__ import annotations

import msgspec

from ocak.api.errors import Header, UnsupportedParameter
from ocak.core.errors import InvalidRequest

NEUTRAL: tuple[object, ...] = (None, False, [], {}, "")

REFUSED: dict[str, tuple[object, ...]] = {
    "tools": (),
    "tool_choice": ("none", "auto"),
    "functions": (),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "grammar": (),
    "json_schema": (),
    "top_logprobs": (0,),
    "best_of": (1,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "use_beam_search": (),
}
CONFIGURED = frozenset(("chat_template", "chat_template_kwargs", "documents"))
HARMLESS = frozenset(
    (
        "user",
        "metadata",
        "store",
        "service_tier",
        "parallel_tool_calls",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
    )
)

MAX_REPORTED = 16
MAX_NAME = 48


def check_others(others: dict[str, msgspec.Raw]) -> tuple[str, ...]:
    """Return the names that are ignored. Raises `UnsupportedParameter` for what cannot be."""
    return tuple(name for name, raw in others.items() if _is_ignored(name, raw))


def ignored_header(names: tuple[str, ...]) -> list[Header]:
    """Name the ignored fields in a header, bounded and in plain characters."""
    if not names:
        return []
    safe = [_plain(name) for name in names[:MAX_REPORTED]]
    if len(names) > MAX_REPORTED:
        safe.append(f"and {len(names) - MAX_REPORTED} more")
    return [(b"x-ocak-ignored-fields", ", ".join(safe).encode())]


def _is_ignored(name: str, raw: msgspec.Raw) -> bool:
    if name in CONFIGURED:
        if not _is_neutral(raw, ()):
            raise InvalidRequest(f"{name} is set in the server's configuration, not in requests", param=name)
        return False
    if name in REFUSED:
        if not _is_neutral(raw, REFUSED[name]):
            raise UnsupportedParameter(f"{name} is not supported by this server", param=name)
        return False
    return name not in HARMLESS


def _is_neutral(raw: msgspec.Raw, also: tuple[object, ...]) -> bool:
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return any(value == neutral and type(value) is type(neutral) for neutral in (*NEUTRAL, *also))


def _plain(name: str) -> str:
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "_-.") else "?" for c in name[:MAX_NAME])
    return plain + "..." * (len(name) > MAX_NAME)
