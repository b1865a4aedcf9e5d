"""Puts messages and tools into the shapes that chat templates read. Pure.

Templates that know tools get them as Hugging Face's do. For one that knows none, tools become a part of the
system message, and calls and their results become text, so that any chat model can use them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import msgspec

from ocak.core.request import Message, Tool, ToolCall

Turn = dict[str, Any]  # a template's own world: it may look at anything

INTRODUCTION = """You can call functions to help with the user's request. They are, one JSON object a line:
<tools>
{tools}
</tools>
To call one, write its name and an object of its arguments as JSON between two tags, and nothing behind them:
<tool_call>
{{"name": "the function's name", "arguments": {{"parameter": "value"}}}}
</tool_call>
Repeat the tags for several calls. The results follow in the next message, between <tool_response> tags."""


def as_turns(messages: Sequence[Message], *, text_arguments: bool = False) -> list[Turn]:
    """Return messages as templates read them; a few templates want the arguments of calls as text."""
    return [_turn(message, text_arguments) for message in messages]


def as_tools(tools: Sequence[Tool]) -> list[Turn] | None:
    return [_tool(tool) for tool in tools] or None


def in_plain_text(messages: Sequence[Message], tools: Sequence[Tool], *, role: str = "system") -> list[Message]:
    """Return the conversation in text alone: the first message of `role`, if need be a new one, tells tools."""
    plain = [turn for is_result, group in groupby(messages, _is_result) for turn in _plain(is_result, list(group))]
    if not tools:
        return plain
    lines = "\n".join(msgspec.json.encode(_tool(tool)).decode() for tool in tools)
    told = INTRODUCTION.format(tools=lines)
    at = next((i for i, message in enumerate(plain) if message.role == role), None)
    if at is None:
        return [Message(role, told), *plain]
    parts = (plain[at].content, told) if role == "system" else (told, plain[at].content)
    plain[at] = msgspec.structs.replace(plain[at], content="\n\n".join(filter(None, parts)))
    return plain


def _turn(message: Message, text_arguments: bool) -> Turn:
    turn: Turn = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [_call(call, text_arguments) for call in message.tool_calls]
    if message.reasoning:
        turn["reasoning_content"] = message.reasoning
    for name in ("tool_call_id", "name"):
        if value := getattr(message, name):
            turn[name] = value
    return turn


def _call(call: ToolCall, text_arguments: bool) -> Turn:
    arguments = call.arguments if text_arguments else msgspec.json.decode(call.arguments)
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _tool(tool: Tool) -> Turn:
    return {"type": "function", "function": msgspec.json.decode(tool.definition)}


def _is_result(message: Message) -> bool:
    return message.role == "tool"


def _plain(is_result: bool, messages: list[Message]) -> list[Message]:
    """Results become one message of the user, for many templates want turns to alternate."""
    if not is_result:
        return [_with_calls_as_text(message) for message in messages]
    results = (f"<tool_response>\n{message.content}\n</tool_response>" for message in messages)
    return [Message("user", "\n".join(results))]


def _with_calls_as_text(message: Message) -> Message:
    if not message.tool_calls:
        return message
    calls = (
        f'<tool_call>\n{{"name": {_quoted(call.name)}, "arguments": {call.arguments}}}\n</tool_call>'
        for call in message.tool_calls
    )
    content = "\n".join(filter(None, (message.content, *calls)))
    return msgspec.structs.replace(message, content=content, tool_calls=())


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()
