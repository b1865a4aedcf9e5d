"""`best_of` through the unmodified `openai` package: more answers are generated than are sent."""

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocak.api.best_of import best, mean_logprob
from ocak.core.events import Delta, Finished, LikelyToken, Started, TokenLogprob, Usage
from ocak.gateway.gateway import Completion
from ocak.providers.echo import EchoProvider
from tests.api.serving import serving_echo
from tests.api.test_openai_client import HELLO, client


class Graded(EchoProvider):
    """Answers with its seed; the last digit says how unlikely each of the answer's tokens is."""

    async def _answer(self, request):
        yield Started(2)
        seed = request.sampling.seed
        piece = LikelyToken(b"x", -float(seed % 10))
        tokens = () if request.logprobs is None else (TokenLogprob(piece, 0, (piece,) * request.logprobs),) * seed
        yield Delta(str(seed), seed, tokens)
        yield Finished("stop", Usage(2, seed))


async def ask(**options):
    provider = Graded()
    async with serving_echo(provider) as served, client(served) as api:
        answer = await api.completions.create(model="echo", seed=8, **options)
    return answer, provider


async def test_the_likeliest_answers_are_sent_best_first_and_all_are_counted():
    answer, provider = await ask(prompt="x", n=2, best_of=4)
    assert [choice.text for choice in answer.choices] == ["10", "11"]  # of 8, 9, 10, 11
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all(choice.logprobs is None for choice in answer.choices)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 8 + 9 + 10 + 11)
    assert len({request.family for request in provider.requests}) == 1 and provider.requests[0].family


async def test_each_prompt_has_its_own_best():
    answer, _ = await ask(prompt=["x", "y", "z"], best_of=3)
    assert [choice.text for choice in answer.choices] == ["10"] * 3
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (6, 3 * (8 + 9 + 10))


async def test_log_probabilities_that_were_asked_for_are_sent():
    answer, provider = await ask(prompt="x", best_of=3, logprobs=2)
    (choice,) = answer.choices
    assert choice.text == "10" and choice.logprobs.token_logprobs == [0.0] * 10
    assert provider.requests[0].logprobs == 2


async def test_the_prompts_log_probabilities_are_asked_for_by_the_body_alone():
    """Answers are compared by those of their own tokens, which says nothing of the prompt's."""
    _, silent = await ask(prompt="x", best_of=3, echo=True)
    assert {(r.logprobs, r.prompt_logprobs) for r in silent.requests} == {(0, None)}
    _, told = await ask(prompt="x", best_of=3, echo=True, logprobs=2)
    assert {(r.logprobs, r.prompt_logprobs) for r in told.requests} == {(2, 2)}


async def test_as_many_as_are_sent_are_no_choice_and_may_be_streamed():
    answer, provider = await ask(prompt="x", n=3, best_of=3)
    assert [choice.text for choice in answer.choices] == ["8", "9", "10"]
    assert provider.requests[0].logprobs is None
    stream, _ = await ask(prompt="x", n=1, best_of=1, stream=True)
    await stream.close()


async def test_a_single_answer_has_no_family(served):
    async with client(served) as api:
        await api.chat.completions.create(model="echo", messages=HELLO)
        await api.chat.completions.create(model="echo", messages=HELLO, n=2)
    assert [bool(request.family) for request in served.echo.requests] == [False, True, True]


async def test_chats_have_no_best_of(served):
    async with client(served) as api:
        with pytest.raises(openai.BadRequestError, match="best_of"):
            await api.chat.completions.create(model="echo", messages=HELLO, extra_body={"best_of": 2})


async def test_a_failure_of_one_is_the_failure_of_all():
    async with serving_echo(EchoProvider(fail_at=1)) as served, client(served) as api:
        with pytest.raises(openai.InternalServerError):
            await api.completions.create(model="echo", prompt="x", best_of=4)


def completion(values):
    tokens = [TokenLogprob(LikelyToken(b"x", value), 0) for value in values]
    return Completion("x" * len(values), "stop", Usage(1, len(values)), tokens)


answers = st.lists(st.lists(st.floats(-9999, 0), max_size=5).map(completion), min_size=1, max_size=8)


@given(
    st.lists(answers, min_size=1, max_size=3).filter(lambda groups: len({len(g) for g in groups}) == 1), st.data()
)
def test_none_that_is_left_out_is_likelier_than_one_that_is_sent(groups, data):
    best_of = len(groups[0])
    n = data.draw(st.integers(1, best_of))
    sent = best([one for group in groups for one in group], best_of, n)
    assert len(sent) == n * len(groups)
    for at, group in enumerate(groups):
        chosen = sent[at * n : (at + 1) * n]
        left = sorted(map(mean_logprob, group), reverse=True)[n:]
        assert [mean_logprob(one) for one in chosen] + left == sorted(map(mean_logprob, group), reverse=True)
