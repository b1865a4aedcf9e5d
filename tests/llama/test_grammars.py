"""Answers that follow a grammar, on a tiny real model."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from llguidance import LLMatcher, LLParserLimits
from tests.models import token_id

from ocak.core.request import Constraint, ConstraintKind, Sampling
from ocak.engine.engine import Engine
from ocak.engine.outputs import Broken, Output, Sampled
from ocak.engine.rules import NO_RULES, TokenRules
from ocak.engine.scheduler import SchedulerLimits
from ocak.engine.sequence import Sequence
from ocak.llama import grammar as grammars
from ocak.llama import library, sampler
from ocak.llama.context import ContextOptions, LlamaContext
from ocak.llama.grammar import GrammarCompiler, GrammarError, GrammarState, LlamaGrammar
from ocak.llama.model import LlamaModel, WeightOptions
from ocak.llama.runner import LlamaRunner
from ocak.worker.constraints import source

GREEDY = Sampling(temperature=0)
DRAWN = Sampling(temperature=1.5, seed=5, top_k=0, top_p=1, min_p=0)
PENALISED = Sampling(temperature=1, seed=5, repetition_penalty=1.3, logit_bias={65: 3.0})
LEARNING = Sampling(seed=5, mirostat=2, mirostat_tau=3)
ALL = pytest.mark.parametrize(
    "sampling", [GREEDY, DRAWN, PENALISED, LEARNING], ids=["greedy", "drawn", "bias", "miro"]
)
CONTEXT = 512
PROMPT = [(5 * i) % 240 + 1 for i in range(40)]
NAME = {"type": "string", "minLength": 2, "maxLength": 8}
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": NAME,
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"enum": ["red", "blue", None]}, "minItems": 1, "maxItems": 3},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    }
)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[LlamaModel]:
    library.initialise()
    loaded = LlamaModel(str(tiny_model), WeightOptions(), lambda _progress: None)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def compiler(model: LlamaModel) -> GrammarCompiler:
    return GrammarCompiler(model.vocabulary)


@pytest.fixture(scope="module")
def end(model: LlamaModel) -> frozenset[int]:
    return model.vocabulary.end_tokens


def compiled(compiler: GrammarCompiler, kind: ConstraintKind, text: str) -> LlamaGrammar:
    return compiler.compile(source(Constraint(kind, text, "field")))


def serve(
    model: LlamaModel, sequences: list[Sequence], *, kv_cells: int = 4 * CONTEXT
) -> tuple[list[Output], int]:
    """Serve them all at once; return what the engine said, and how often one was preempted."""
    options = ContextOptions(
        context=CONTEXT,
        parallel=4,
        kv_cells=kv_cells,
        batch_tokens=64,
        threads=1,
        kv_type="f16",
        kv_offload=True,
        flash_attn="auto",
    )
    context = LlamaContext(model, options)
    limits = SchedulerLimits(options.parallel, CONTEXT, kv_cells, options.batch_tokens)
    engine = Engine(LlamaRunner(context, model.vocabulary), limits)
    for sequence in sequences:
        engine.submit(sequence)
    outputs: list[Output] = []
    while engine.has_work:
        outputs += engine.step()
    engine.check_integrity()
    context.close()
    return outputs, engine.stats().preemptions


def following(rules: TokenRules, sampling: Sampling = DRAWN, num_tokens: int = 400, number: int = 0) -> Sequence:
    return Sequence(number, PROMPT[number:], sampling, num_tokens, rules.end_tokens, rules=rules)


def answer(model: LlamaModel, rules: TokenRules, sampling: Sampling = DRAWN) -> str:
    """The text of a whole answer."""
    sequence = following(rules, sampling)
    outputs, _ = serve(model, [sequence])
    assert isinstance(outputs[-1], Sampled) and outputs[-1].reason == "stop", outputs[-1]
    return text(model, sequence)


def text(model: LlamaModel, sequence: Sequence) -> str:
    return b"".join(map(model.vocabulary.piece, sequence.tokens[sequence.num_prompt :])).decode()


def check_form(value: object) -> None:
    assert isinstance(value, dict) and list(value) == ["name", "age", "tags"]
    assert 2 <= len(value["name"]) <= 8 and 0 <= value["age"] <= 120
    assert 1 <= len(value["tags"]) <= 3 and set(value["tags"]) <= {"red", "blue", None}


@ALL
def test_an_answer_keeps_to_its_schema_and_ends(
    model: LlamaModel, compiler: GrammarCompiler, end: frozenset[int], sampling: Sampling
) -> None:
    grammar = compiled(compiler, "json_schema", SCHEMA)
    check_form(json.loads(answer(model, TokenRules(end_tokens=end, grammar=grammar), sampling)))


@pytest.mark.parametrize(
    ("kind", "grammar", "pattern"),
    [
        ("regex", r"[0-9]{3}-[a-f]{2,4}", r"[0-9]{3}-[a-f]{2,4}"),
        ("choice", '["yes", "yes please", "çok 🔥"]', "yes|yes please|çok 🔥"),
        ("grammar", 'root ::= x{2,3} "."\nx ::= "ab" | [0-9]', r"(ab|[0-9]){2,3}\."),
        ("grammar", 'start: a{2,3} "."\na: "ab" | /[0-9]/', r"(ab|[0-9]){2,3}\."),
    ],
)
def test_an_answer_matches_what_was_asked_for(
    model: LlamaModel, compiler: GrammarCompiler, kind: ConstraintKind, grammar: str, pattern: str
) -> None:
    rules = TokenRules(end_tokens=model.vocabulary.end_tokens, grammar=compiled(compiler, kind, grammar))
    for sampling in (GREEDY, DRAWN):
        assert re.fullmatch(pattern, answer(model, rules, sampling))


def test_answers_keep_to_their_own_grammars_side_by_side_and_through_preemptions(
    model: LlamaModel, compiler: GrammarCompiler, end: frozenset[int]
) -> None:
    one, other = (compiled(compiler, "regex", f"[{letters}]{{140}}") for letters in ("a-c", "x-z"))
    rules = [TokenRules(end_tokens=end, grammar=grammar) for grammar in (one, other, one)]
    sequences = [following(each, num_tokens=200, number=i) for i, each in enumerate([*rules, NO_RULES])]
    _, num_preempted = serve(model, sequences, kv_cells=CONTEXT)
    assert num_preempted > 0
    for sequence, letters in zip(sequences, ("a-c", "x-z", "a-c"), strict=False):
        assert re.fullmatch(f"[{letters}]{{140}}", text(model, sequence))


def test_a_dead_end_ends_one_answer_with_a_reason_and_no_other(
    model: LlamaModel, compiler: GrammarCompiler, end: frozenset[int]
) -> None:
    grammar = compiled(compiler, "regex", "ab")
    allowed = frozenset({token_id("a"), *end})
    dead = following(TokenRules(allowed=allowed, end_tokens=end, grammar=grammar))
    alive = following(TokenRules(end_tokens=end, grammar=grammar), number=1)
    free = following(NO_RULES, num_tokens=20, number=2)
    outputs, _ = serve(model, [dead, alive, free])
    broken = [output for output in outputs if isinstance(output, Broken)]
    assert [output.sequence for output in broken] == [dead]
    assert "no token is left" in broken[0].message
    assert text(model, alive) == "ab" and free.num_generated == 20


def test_an_answer_goes_on_where_what_its_grammar_learnt_grew_too_large(
    model: LlamaModel, compiler: GrammarCompiler, end: frozenset[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are states enough for each answer, but not for all."""
    monkeypatch.setattr(grammars, "limits", lambda _source: LLParserLimits(max_lexer_states=150))
    grammar = compiled(compiler, "regex", "(a|b)*a(a|b){40}")
    rules = TokenRules(end_tokens=end, avoided=end, grammar=grammar)
    with mock.patch.object(grammar, "renew", wraps=grammar.renew) as renewed:
        for number in range(4):
            sequence = following(rules, Sampling(seed=number, temperature=5, top_k=0), 90)
            serve(model, [sequence])
            assert re.fullmatch("[ab]{90}", text(model, sequence))
    assert renewed.called


def test_a_grammar_that_fails_for_good_is_an_error_and_not_an_end(
    model: LlamaModel, compiler: GrammarCompiler, end: frozenset[int]
) -> None:
    dead = following(TokenRules(end_tokens=end, grammar=Failing(compiled(compiler, "regex", "(a|b)*"))))
    outputs, _ = serve(model, [dead])
    assert isinstance(outputs[-1], Broken) and "could not be followed" in outputs[-1].message


def test_a_grammar_whose_masks_take_too_long_ends_its_answer(
    model: LlamaModel, compiler: GrammarCompiler, end: frozenset[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "GRACE_S", -1.0)
    slow = following(TokenRules(end_tokens=end, grammar=compiled(compiler, "regex", "a{30}")))
    free = following(NO_RULES, num_tokens=9, number=1)
    outputs, _ = serve(model, [slow, free])
    broken = [output for output in outputs if isinstance(output, Broken)]
    assert [output.sequence for output in broken] == [slow] and "simpler" in broken[0].message
    assert free.num_generated == 9


class Failing(LlamaGrammar):
    """Its matchers have failed before their first token."""

    def __init__(self, other: LlamaGrammar) -> None:
        self.num_vocab, self.pool, self.first, self._other = other.num_vocab, other.pool, other.first, other

    def matcher(self) -> LLMatcher:
        matcher = self._other.matcher()
        matcher.consume_token(token_id("z"))
        return matcher

    def renew(self) -> None:
        pass


def test_tokens_that_end_an_answer_match_no_text(
    model: LlamaModel, compiler: GrammarCompiler, end: frozenset[int]
) -> None:
    first = compiled(compiler, "regex", r"(?s).+").first
    assert first[sorted(end)].all()
    assert first[[token_id(name) for name in ("<|im_start|>", "<|im_end|>", "<|endoftext|>")]].all()
    assert not first[[token_id("a"), token_id("ocak")]].any()


def test_an_answer_is_as_long_as_it_must_be_and_then_as_its_grammar_lets_it(
    model: LlamaModel, compiler: GrammarCompiler, end: frozenset[int]
) -> None:
    grammar = compiled(compiler, "regex", "a{1,9}")
    held = answer(model, TokenRules(end_tokens=end, grammar=grammar, min_tokens=6))
    assert len(held) >= 6
    assert answer(model, TokenRules(end_tokens=end, grammar=grammar, min_tokens=50)) == "a" * 9


def test_avoided_ends_come_only_at_the_end_of_the_grammar(
    model: LlamaModel, compiler: GrammarCompiler, end: frozenset[int]
) -> None:
    grammar = compiled(compiler, "regex", "a{1,20}")
    rules = TokenRules(end_tokens=end, avoided=end, grammar=grammar)
    assert answer(model, rules) == answer(model, rules, GREEDY) == "a" * 20


def test_rules_and_grammar_hold_together(
    model: LlamaModel, compiler: GrammarCompiler, end: frozenset[int]
) -> None:
    grammar = compiled(compiler, "regex", "[a-d]{30}")
    a, b, c, d = map(token_id, "abcd")
    rules = TokenRules(
        allowed=frozenset({a, b, c, *end}), bad_words=frozenset({(b,), (a, a)}), end_tokens=end, grammar=grammar
    )
    held = answer(model, rules)
    assert re.fullmatch("[ac]{30}", held) and "aa" not in held and d


@ALL
def test_samplers_pick_the_same_from_few_tokens_as_from_a_vocabulary_without_the_others(
    model: LlamaModel, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = frozenset(range(30, 60))
    answers = []
    for many in (1, 10**6):
        monkeypatch.setattr(sampler, "MANY", many)
        sequence = following(TokenRules(allowed=allowed), sampling, 50)
        serve(model, [sequence])
        answers.append(sequence.tokens)
    assert answers[0] == answers[1]


def test_equal_seeds_give_equal_answers(model: LlamaModel, compiler: GrammarCompiler, end: frozenset[int]) -> None:
    rules = TokenRules(end_tokens=end, grammar=compiled(compiler, "json_schema", SCHEMA))
    assert answer(model, rules) == answer(model, rules)


def test_taking_a_token_does_not_wait_for_the_next_mask(compiler: GrammarCompiler) -> None:
    grammar = compiled(compiler, "regex", "ab")
    gate = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        grammar.pool = pool
        pool.submit(gate.wait)
        state = GrammarState(grammar)
        state.accept(token_id("a"))
        gate.set()
        assert list(np.flatnonzero(~state.forbidden())) == [token_id("b")]


def test_a_wrong_source_is_an_error_of_ours(compiler: GrammarCompiler) -> None:
    with pytest.raises(GrammarError, match="foo"):
        compiler.compile("start: foo")
