"""How models write what is more than text: calls of tools, and reasoning. Pure, no model, no clock.

    answer.py      AnswerReader: reasoning, then calls; what the engine's thread feeds
    reasoning.py   ReasoningSplitter: <think>…</think> and its like
    calls.py       CallSplitter: finds calls in text, one machine for all styles
    bodies.py      the interface of a call's body, and JSON objects: {"name": …, "arguments": …}
    mistral.py     [TOOL_CALLS]…
    xml_body.py    <function=…><parameter=…>…
    harmony.py     <|channel|>…<|message|>…, gpt-oss's reasoning, text and calls in one
    styles.py      the styles by name, and which of them a template speaks
    forced.py      how a call begins that must come, and a grammar for the rest of it

A new style is a body (or one of these) and an entry in `styles.STYLES`.
"""
