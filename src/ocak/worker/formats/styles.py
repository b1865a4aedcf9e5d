"""The styles in which models write calls and reasoning, and which of them a chat template speaks. Pure.

A template names its marks, for it has to write past calls and past reasoning itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ocak.worker.formats import harmony
from ocak.worker.formats.bodies import JsonCall, JsonCalls
from ocak.worker.formats.calls import CallMarks
from ocak.worker.formats.mistral import MistralCalls
from ocak.worker.formats.reasoning import ReasoningMarks
from ocak.worker.formats.xml_body import XmlCall

ToolFormat = Literal["hermes", "qwen3_coder", "llama3", "mistral", "json", "harmony"]
ReasoningFormat = Literal["think", "mistral", "harmony", "none"]

KNOWS_TOOLS = re.compile(r"\btools\b")


@dataclass(frozen=True, slots=True)
class ToolStyle:
    """How calls are marked; how one begins that must come, up to its tool's name, and from there to its arguments.

    `after` ends such a call behind its arguments. `special` are marks that may be tokens without a text.
    Harmony does not mark calls within a text, so it has no marks here.
    """

    marks: CallMarks | None
    before_name: str
    before_arguments: str
    after: str
    special: tuple[str, ...] = ()


def _json_style(
    marks: CallMarks, before: str, key: str = "arguments", after: str = "}", special: tuple[str, ...] = ()
) -> ToolStyle:
    return ToolStyle(marks, before + '{"name": "', f'", "{key}":', after, special)


TOOL_STYLES: dict[ToolFormat, ToolStyle] = {
    "hermes": _json_style(
        CallMarks("<tool_call>", "</tool_call>", JsonCall),
        "<tool_call>\n",
        after="}\n</tool_call>",
        special=("<tool_call>", "</tool_call>"),
    ),
    "qwen3_coder": ToolStyle(
        CallMarks("<tool_call>", "</tool_call>", XmlCall),
        "<tool_call>\n<function=",
        ">\n",
        "</function>\n</tool_call>",
        ("<tool_call>", "</tool_call>"),
    ),
    "llama3": _json_style(
        CallMarks("<|python_tag|>", "", JsonCall, is_bare=True), "", "parameters", special=("<|python_tag|>",)
    ),
    "mistral": _json_style(
        CallMarks("[TOOL_CALLS]", "", MistralCalls), "[TOOL_CALLS][", after="}]", special=("[TOOL_CALLS]",)
    ),
    "harmony": ToolStyle(
        None,
        harmony.CHANNEL + "commentary to=functions.",
        f" {harmony.CONSTRAIN}json{harmony.MESSAGE}",
        "",
        harmony.MARKS,
    ),
    "json": _json_style(CallMarks("<tool_call>", "</tool_call>", JsonCalls, is_bare=True), ""),
}
MISTRAL_WITH_ARGS = ToolStyle(
    CallMarks("[TOOL_CALLS]", "", MistralCalls),
    "[TOOL_CALLS]",
    "[ARGS]",
    "",
    ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
)
REASONING_MARKS: dict[ReasoningFormat, ReasoningMarks | None] = {
    "think": ReasoningMarks("<think>", "</think>"),
    "mistral": ReasoningMarks("[THINK]", "[/THINK]"),
    "harmony": None,
    "none": None,
}


def knows_tools(template: str) -> bool:
    """Whether the template writes tools itself."""
    return KNOWS_TOOLS.search(template) is not None


def tool_format(template: str) -> ToolFormat:
    """Return the style that the template's own marks show."""
    if harmony.CHANNEL in template and harmony.MESSAGE in template:
        return "harmony"
    if not knows_tools(template):
        return "hermes"  # what ocak then writes into the system message
    if "<function=" in template and "<parameter=" in template:
        return "qwen3_coder"
    if "<tool_call>" in template:
        return "hermes"
    if "[TOOL_CALLS]" in template:
        return "mistral"
    return "llama3" if "<|python_tag|>" in template or '"parameters": ' in template else "json"


def tool_style(name: ToolFormat, template: str) -> ToolStyle:
    """Return the style by its name; Mistral's has two forms, told apart by the template."""
    return MISTRAL_WITH_ARGS if name == "mistral" and "[ARGS]" in template else TOOL_STYLES[name]


def reasoning_format(template: str) -> ReasoningFormat:
    if harmony.CHANNEL in template and harmony.MESSAGE in template:
        return "harmony"
    if "[THINK]" in template:
        return "mistral"
    return "think" if "<think>" in template or "</think>" in template else "none"
