"""How a call is written that must come: its beginning, which goes behind the prompt, and a grammar of the rest.

The beginning alone makes sure that the answer begins as a call, of the one tool if only one may be called. That
the rest of it is one, with arguments of the tool's schema, takes a sampler that keeps to `rest`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ocak.core.request import Tool
from ocak.worker.formats.styles import ToolStyle

ANY_OBJECT: dict[str, Any] = {"type": "object"}
# Blanks between tokens are bounded, or a model that likes them would never end. Lenient: what llguidance does
# not know of a schema is passed over.
GUIDANCE = {"whitespace_pattern": r" ?|\n[ \t]{0,20}", "lenient": True}


@dataclass(frozen=True, slots=True)
class ForcedCall:
    """`rest` is a Lark grammar, as llguidance reads it, of what may follow `beginning`; None: there is none."""

    beginning: str
    rest: str | None


def forced_call(style: ToolStyle, tools: Sequence[Tool]) -> ForcedCall:
    """Return how a call of one of `tools` begins; there is at least one."""
    if len(tools) == 1:
        beginning = style.before_name + tools[0].name + style.before_arguments
        return ForcedCall(beginning, _grammar(style, tools, is_named=True))
    return ForcedCall(style.before_name, _grammar(style, tools, is_named=False))


def parameters_schema(tool: Tool) -> dict[str, Any]:
    """Return the JSON schema of a tool's arguments: any object where it declares none."""
    schema = msgspec.json.decode(tool.definition).get("parameters")
    return schema if isinstance(schema, dict) and schema else ANY_OBJECT


def parameter_types(tool: Tool) -> dict[str, str]:
    """Return the declared type of each parameter that has just one."""
    properties = parameters_schema(tool).get("properties")
    if not isinstance(properties, dict):
        return {}
    kinds = {key: rule.get("type") for key, rule in properties.items() if isinstance(rule, dict)}
    return {key: kind for key, kind in kinds.items() if isinstance(kind, str)}


def _grammar(style: ToolStyle, tools: Sequence[Tool], *, is_named: bool) -> str | None:
    if style.before_arguments.startswith(">"):
        return None  # parameters as XML are no JSON
    if style.marks is None and not is_named:
        return None  # a head of harmony's has special tokens, which are no text
    lines = ["start: " + " | ".join(f"call_{i}" for i in range(len(tools)))]
    for i, tool in enumerate(tools):
        head = "" if is_named else _text(tool.name + style.before_arguments) + " "
        tail = f" {_text(style.after)}" if style.after else ""
        lines.append(f"call_{i}: {head}/ ?/ arguments_{i}{tail}")
        schema = parameters_schema(tool) | {"x-guidance": GUIDANCE}
        lines.append(f"arguments_{i}: %json {_text(schema)}")
    return "\n".join(lines) + "\n"


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()
