"""Tools in OpenAI's bodies: what a caller offers and forces, and the calls that travel both ways. Types only."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

DEFINITION_SCHEMA = {
    "type": "object",
    "description": "name, description, and parameters as a JSON schema.",
    "required": ["name"],
    "properties": {
        "name": {"type": "string"},
        "description": {"type": "string"},
        "parameters": {"type": "object"},
    },
}
CHOICE_SCHEMA = {
    "description": "auto, none, required, or the one function that must be called.",
    "oneOf": [
        {"type": "string", "enum": ["auto", "none", "required"]},
        {
            "type": "object",
            "properties": {
                "type": {"type": "string", "enum": ["function"]},
                "function": {"type": "object", "properties": {"name": {"type": "string"}}},
            },
        },
    ],
}


class ToolBody(msgspec.Struct, frozen=True):
    type: Literal["function"]
    function: Annotated[msgspec.Raw, Meta(extra_json_schema=DEFINITION_SCHEMA)]


class FunctionBody(msgspec.Struct, frozen=True):
    """What is read of a definition; the chat template gets all of it."""

    name: str
    description: str | None = None
    parameters: dict[str, msgspec.Raw] | None = None


class ChosenName(msgspec.Struct, frozen=True):
    name: str


class ChosenFunction(msgspec.Struct, frozen=True):
    type: Literal["function"]
    function: ChosenName


class CalledFunction(msgspec.Struct, frozen=True):
    name: str
    arguments: Annotated[str, Meta(description="A JSON object, as text.")] = ""


class ToolCallBody(msgspec.Struct, frozen=True, kw_only=True):
    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction


class CallDeltaFunction(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    name: str | None = None
    arguments: str


class CallDelta(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A piece of a call in a stream: with its id, type and name the first, then its arguments."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: CallDeltaFunction
