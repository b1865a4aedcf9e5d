"""What a request rules out, and what of it applies after the tokens so far."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocak.core.errors import InvalidRequest
from ocak.core.request import GenerateRequest, Sampling, Stopping, TextPrompt
from ocak.engine.rules import NO_RULES, TokenRules
from ocak.llama.token_mask import TokenMask
from ocak.worker.rules import end_tokens, token_rules

NUM_VOCAB = 6
tokens = st.integers(0, NUM_VOCAB - 1)
rules_strategy = st.builds(
    TokenRules,
    allowed=st.none() | st.frozensets(tokens, min_size=1),
    bad_words=st.frozensets(st.lists(tokens, min_size=1, max_size=3).map(tuple), max_size=5),
    end_tokens=st.frozensets(tokens, max_size=2),
    min_tokens=st.integers(0, 5),
).filter(lambda rules: rules.leaves_a_token(NUM_VOCAB))


def broken(rules: TokenRules, answer: list[int], token: int) -> bool:
    """Whether the token breaks a rule, told from the rules' own words."""
    after = (*answer, token)
    return (
        (rules.allowed is not None and token not in rules.allowed)
        or (len(answer) < rules.min_tokens and token in rules.end_tokens)
        or any(after[-len(word) :] == word for word in rules.bad_words)
    )


@given(rules_strategy, st.lists(tokens, max_size=12))
def test_a_mask_forbids_what_breaks_a_rule_and_leaves_a_token(rules: TokenRules, answer: list[int]) -> None:
    mask = TokenMask(rules, NUM_VOCAB)
    for i, token in enumerate([*answer, 0]):
        forbidden = mask.forbidden()
        by_rule = [broken(rules, answer[:i], t) for t in range(NUM_VOCAB)]
        assert not forbidden.all()
        assert list(forbidden) == by_rule or all(by_rule), "longer words give way, and then alone"
        mask.accept(token)


def test_void_rules_are_told() -> None:
    assert NO_RULES.is_void
    assert TokenRules(end_tokens=frozenset({1})).is_void
    assert not TokenRules(end_tokens=frozenset({1}), min_tokens=1).is_void
    assert not TokenRules(allowed=frozenset({1})).is_void


class FakeWords:
    """One token for each letter; `_` is the space."""

    size = 27
    end_tokens = frozenset({25})

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        assert not add_special and not parse_special
        return [26 if c == " " else ord(c) - ord("a") for c in text]


def request(sampling: Sampling | None = None, stopping: Stopping | None = None) -> GenerateRequest:
    return GenerateRequest(
        id="r", model="m", prompt=TextPrompt("x"), sampling=sampling or Sampling(), stopping=stopping or Stopping()
    )


def test_words_are_bad_after_a_space_too() -> None:
    rules = token_rules(request(Sampling(bad_words=("ab", " c"))), FakeWords())
    assert rules.bad_words == {(0, 1), (26, 0, 1), (26, 2)}


def test_stop_tokens_end_an_answer_beside_the_models_own() -> None:
    stopping = Stopping(stop_token_ids=(3, 4), min_tokens=2)
    assert end_tokens(request(stopping=stopping), FakeWords()) == {3, 4, 25}
    rules = token_rules(request(stopping=stopping), FakeWords())
    assert (rules.end_tokens, rules.min_tokens) == ({3, 4, 25}, 2)
    ignoring = Stopping(stop_token_ids=(3,), ignore_eos=True)
    assert end_tokens(request(stopping=ignoring), FakeWords()) == {3}


@pytest.mark.parametrize(
    ("sampling", "stopping", "param"),
    [
        (Sampling(logit_bias={27: 1.0}), Stopping(), "logit_bias"),
        (Sampling(allowed_token_ids=(1, 27)), Stopping(), "allowed_token_ids"),
        (Sampling(), Stopping(stop_token_ids=(27,)), "stop_token_ids"),
        (Sampling(allowed_token_ids=(0,), bad_words=("a",)), Stopping(), "allowed_token_ids"),
        (Sampling(allowed_token_ids=(25,)), Stopping(min_tokens=1), "allowed_token_ids"),
        (
            Sampling(
                bad_words=tuple("abcdefghijklmnopqrstuvwxyz "),
            ),
            Stopping(),
            "bad_words",
        ),
        (Sampling(samplers=("top_k", "infill"), bad_words=("a",)), Stopping(), "samplers"),
        (Sampling(samplers=("top_k", "infill")), Stopping(min_tokens=1), "samplers"),
    ],
)
def test_rules_that_the_model_cannot_keep_are_refused(sampling: Sampling, stopping: Stopping, param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        token_rules(request(sampling, stopping), FakeWords())
    assert refusal.value.param == param
