"""Tells whether two models mean the same by their tokens' ids, as far as guessing by one for the other asks.

The rules are llama.cpp's (`common/speculative.cpp`): a few ids more or fewer at the end do no harm, and the first
ones are control tokens that may be named differently.
"""

from __future__ import annotations

from llama_cpp import llama_cpp as c

from ocak.llama.vocabulary import Vocabulary

MOST_MORE = 128  # ids that one of the two may have more
FIRST_COMPARED = 5
KINDS = {0: "none", 1: "SPM", 2: "BPE", 3: "WPM", 4: "UGM", 5: "RWKV", 6: "PLaMo-2"}  # llama_vocab_type
SPECIAL = (
    ("BOS", c.llama_vocab_get_add_bos, c.llama_vocab_bos),
    ("EOS", c.llama_vocab_get_add_eos, c.llama_vocab_eos),
)


def difference(target: Vocabulary, draft: Vocabulary) -> str | None:
    """Say what keeps the draft from guessing for the target; None if nothing does."""
    kinds = [c.llama_vocab_type(one.pointer) for one in (draft, target)]
    if kinds[0] != kinds[1]:
        named = [KINDS.get(kind, str(kind)) for kind in kinds]
        return f"its tokenizer is of the type {named[0]}, the model's of {named[1]}"
    if abs(target.size - draft.size) > MOST_MORE:
        return f"it has {draft.size} tokens, the model {target.size}; {MOST_MORE} more or fewer would do no harm"
    return _special_difference(target, draft) or _text_difference(target, draft)


def _special_difference(target: Vocabulary, draft: Vocabulary) -> str | None:
    for name, is_added, token in SPECIAL:
        ids = [token(one.pointer) if is_added(one.pointer) else None for one in (draft, target)]
        if ids[0] != ids[1]:
            added = ["no token" if known is None else f"token {known}" for known in ids]
            return f"as {name} it adds {added[0]} to a text, the model {added[1]}"
    return None


def _text_difference(target: Vocabulary, draft: Vocabulary) -> str | None:
    for token in range(FIRST_COMPARED, min(target.size, draft.size)):
        mine, others = (c.llama_vocab_get_text(one.pointer, token) for one in (draft, target))
        if mine != others:
            return f"its token {token} is {_shown(mine)}, the model's {_shown(others)}"
    return None


def _shown(text: bytes) -> str:
    return repr(text.decode("utf-8", "replace")[:40])
