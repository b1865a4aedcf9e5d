"""Whatever a model says under a schema is valid: random walks over the masks, judged by another library."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.models import TinyModel, write_model

from ocak.core.request import Constraint
from ocak.engine.rules import TokenRules
from ocak.llama import library
from ocak.llama.grammar import GrammarCompiler, GrammarState
from ocak.llama.model import LlamaModel, WeightOptions
from ocak.llama.token_mask import TokenMask
from ocak.worker.constraints import source

MAX_TOKENS = 800
NAMES = st.text('abç"\\/~$ {}', min_size=1, max_size=4)
SCALARS = st.one_of(
    st.integers(0, 6).map(lambda n: {"type": "string", "minLength": n, "maxLength": n + 3}),
    st.tuples(st.integers(-99, 99), st.integers(0, 200)).map(
        lambda pair: {"type": "integer", "minimum": pair[0], "maximum": pair[0] + pair[1]}
    ),
    st.lists(st.one_of(st.none(), st.booleans(), st.integers(-9, 9), NAMES), min_size=1, max_size=4).map(
        lambda values: {"enum": values}
    ),
    st.sampled_from(
        [
            {"type": "boolean"},
            {"type": "null"},
            {"type": "string", "pattern": "^[a-f]{2,4}x?$"},
            {"type": "string", "format": "date"},
            {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
        ]
    ),
)


def _objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(NAMES, inner, max_size=4).flatmap(
        lambda properties: st.lists(st.sampled_from(sorted(properties) or [""]), unique=True).map(
            lambda required: {
                "type": "object",
                "properties": properties,
                "required": [name for name in required if name in properties],
                "additionalProperties": False,
            }
        )
    )


SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        _objects(inner),
        st.tuples(inner, st.integers(0, 2)).map(
            lambda pair: {"type": "array", "items": pair[0], "minItems": pair[1], "maxItems": pair[1] + 2}
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
    ),
    max_leaves=6,
)


# RFC 3339 has a year 0, Python has none.
FORMATS = jsonschema.FormatChecker(sorted(set(jsonschema.FormatChecker.checkers) - {"date", "date-time"}))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    """Tokens that span the parts of JSON make more ways to go wrong."""
    library.initialise()
    path = tmp_path_factory.mktemp("models") / "words.gguf"
    words = (
        '":"',
        '"}',
        '"]',
        '},{"',
        '", "',
        "[[",
        "]]",
        "12",
        "00",
        "null",
        "true",
        'e":',
        "\\u00",
        "\\n",
        "  ",
    )
    write_model(path, TinyModel(extra_tokens=words))
    loaded = LlamaModel(str(path), WeightOptions(), lambda _progress: None)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def compiler(model: LlamaModel) -> GrammarCompiler:
    return GrammarCompiler(model.vocabulary)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(SCHEMAS, st.integers(0, 2**31))
def test_a_walk_that_ends_is_valid(
    model: LlamaModel, compiler: GrammarCompiler, schema: dict[str, Any], seed: int
) -> None:
    text = walk(model, compiler, schema, random.Random(seed))
    assume(text is not None)
    jsonschema.Draft202012Validator(schema, format_checker=FORMATS).validate(json.loads(text))


def walk(
    model: LlamaModel, compiler: GrammarCompiler, schema: dict[str, Any], choices: random.Random
) -> str | None:
    """Pick any allowed token, again and again; None if that comes to no end."""
    ends = model.vocabulary.end_tokens
    grammar = compiler.compile(source(Constraint("json_schema", json.dumps(schema), "f")))
    mask = TokenMask(TokenRules(grammar=grammar), model.vocabulary.size, GrammarState(grammar))
    said = b""
    for _ in range(MAX_TOKENS):
        token = choices.choice(np.flatnonzero(~mask.forbidden()).tolist())
        if token in ends:
            return said.decode()
        said += model.vocabulary.piece(token)
        mask.accept(token)
    return None
