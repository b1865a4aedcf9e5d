"""What a grammar may cost in llguidance, when it is compiled and for every mask. No import of llama.cpp.

An ambiguous grammar costs the square of what a row of its parser holds, so written ones have a low limit there.
Schemas are not ambiguous, and their rows hold four items for each optional property.
"""

from __future__ import annotations

from llguidance import LLParserLimits

SCHEMA_ROW = 4000
GRAMMAR_ROW = 400


def limits(source: str) -> LLParserLimits:
    """Return the limits for a source, by its form."""
    is_schema = source.startswith('{"grammars":[{"json_schema"')
    return LLParserLimits(
        max_items_in_row=SCHEMA_ROW if is_schema else GRAMMAR_ROW,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=100_000,  # some 7 ms for a mask
        step_max_items=50_000,
        max_lexer_states=20_000,  # 1 to 2 KB each
        max_grammar_size=200_000,
        verbose_errors=False,
    )
