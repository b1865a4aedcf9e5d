"""Translates tools, the choice among them and past calls from OpenAI's bodies. Pure.

Names, numbers and sizes of tools are `core/limits.py`'s to check; shapes are checked here.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ocak.api.json_body import decode_field
from ocak.api.tools_wire import ChosenFunction, FunctionBody, ToolBody, ToolCallBody
from ocak.core.errors import InvalidRequest
from ocak.core.limits import MAX_TOOL_CALLS, check_text
from ocak.core.request import NAMED, Tool, ToolCall

WORDS = ("auto", "none", "required")
SHAPES = 'auto, none, required, or {"type": "function", "function": {"name": …}}'


def read_tools(bodies: Sequence[ToolBody] | None) -> tuple[Tool, ...]:
    return tuple(_tool(body, f"tools[{i}].function") for i, body in enumerate(bodies or ()))


def read_choice(raw: msgspec.Raw, tools: Sequence[Tool]) -> str:
    """Return the choice as `ChatPrompt` holds it: silence means auto."""
    if bytes(raw) in (b"", b"null"):
        return "auto"
    if bytes(raw)[:1] == b'"':
        choice: str = decode_field(raw, str, "tool_choice")
        if choice not in WORDS:
            raise InvalidRequest(f"tool_choice must be {SHAPES}, not {choice[:40]!r}", param="tool_choice")
    else:
        chosen: ChosenFunction = decode_field(raw, ChosenFunction, "tool_choice")
        choice = NAMED + chosen.function.name
    return _among(choice, tools)


def read_calls(bodies: Sequence[ToolCallBody] | None, where: str) -> tuple[ToolCall, ...]:
    """Return the calls of a past answer, whose arguments must be JSON objects, for templates look into them."""
    if len(bodies or ()) > MAX_TOOL_CALLS:
        raise InvalidRequest(f"{where} holds more than {MAX_TOOL_CALLS} calls", param=where)
    return tuple(_call(body, f"{where}[{i}]") for i, body in enumerate(bodies or ()))


def _tool(body: ToolBody, where: str) -> Tool:
    function: FunctionBody = decode_field(body.function, FunctionBody, where)
    decode_field(body.function, object, where)  # whatever else it holds must be sound too
    return Tool(function.name, bytes(body.function).decode())


def _among(choice: str, tools: Sequence[Tool]) -> str:
    if choice in ("auto", "none"):
        return choice
    if not tools:
        raise InvalidRequest(
            "tool_choice asks for a call, and there are no tools; send tools", param="tool_choice"
        )
    name = choice.removeprefix(NAMED)
    if choice != "required" and all(tool.name != name for tool in tools):
        known = ", ".join(tool.name for tool in tools[:8])
        raise InvalidRequest(
            f"tool_choice names {name[:40]!r}, which is none of the tools: {known}", param="tool_choice"
        )
    return choice


def _call(body: ToolCallBody, where: str) -> ToolCall:
    place = f"{where}.function.arguments"
    arguments = body.function.arguments or "{}"
    for text, name in ((body.id, "id"), (body.function.name, "function.name"), (arguments, "function.arguments")):
        check_text(text, f"{where}.{name}")
    if not arguments.lstrip().startswith("{"):
        raise InvalidRequest(f"{place} is no JSON object; send one as text, {{}} for none", param=place)
    decode_field(msgspec.Raw(arguments.encode()), object, place)
    return ToolCall(body.id, body.function.name, arguments)
