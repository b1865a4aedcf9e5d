"""A real server with LoRA adapters, asked with OpenAI's own client."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from tests.adapters import TinyAdapter, write_adapter
from tests.cli.processes import RunningServer, ocak, serving

PROMPT = list(range(40, 90))
CHOICES = [
    {"model": "tiny"},
    {"model": "tiny:loud"},
    {"model": "tiny", "extra_body": {"lora": "other"}},
    {"model": "still"},
]


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("adapters")
    loud = write_adapter(folder / "loud.gguf", TinyAdapter(seed=1))
    other = write_adapter(folder / "other.gguf", TinyAdapter(seed=1))
    still = write_adapter(folder / "still.gguf", TinyAdapter(strength=0.0))
    flags = (f"--lora=loud={loud}", f"--lora=other={other}:-0.5", f"--lora=still={still}")
    state_dir = f"--state-dir={folder / 'states'}"
    with serving(tiny_model, "--parallel", "3", state_dir, *flags) as running:
        yield running


def ask(server: RunningServer, **fields: object) -> str:
    body = {"prompt": PROMPT, "max_tokens": 16, "temperature": 0} | fields
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.completions.create(**body)  # type: ignore[call-overload]
        return answer.choices[0].text  # type: ignore[no-any-return]


def post(server: RunningServer, path: str, body: object) -> tuple[int, str]:
    headers = {"content-type": "application/json"}
    try:
        request = urllib.request.Request(server.url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_each_adapter_answers_alone_as_among_the_others(server: RunningServer) -> None:
    alone = [ask(server, **choice) for choice in CHOICES]
    assert len(set(alone)) == 3 and alone[0] == alone[3]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda choice: ask(server, **choice), CHOICES * 4)) == alone * 4


def test_a_conversation_is_saved_of_the_model_alone(server: RunningServer) -> None:
    """What an adapter computed is never taken for the model's, nor the other way round."""
    save = {"tokens": PROMPT, "cache_salt": "talk"}
    ask(server, model="loud", extra_body={"cache_salt": "talk"})
    place = "/api/v1/models/tiny/conversations/talk"
    assert post(server, place, save)[0] == 409, "nothing of the model's own is cached"
    status, told = post(server, place.replace("tiny", "tiny:loud"), save)
    assert status == 400 and "adapter" in told
    ask(server, model="tiny", extra_body={"cache_salt": "talk"})
    assert post(server, place, save)[0] == 200


def test_a_chat_may_name_an_adapter_too(server: RunningServer) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        texts = [
            client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "hello"}], max_tokens=12, temperature=0
            )
            .choices[0]
            .message.content
            for model in ("tiny", "loud", "tiny:loud")
        ]
    assert texts[0] != texts[1] == texts[2]


def test_a_prompt_that_another_adapter_computed_is_not_used(server: RunningServer) -> None:
    def cached(model: str) -> int:
        with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            prompt = list(range(100, 200))
            usage = client.completions.create(model=model, prompt=prompt, max_tokens=1, temperature=0).usage
        assert usage is not None and usage.prompt_tokens_details is not None
        return usage.prompt_tokens_details.cached_tokens or 0

    assert [cached(model) for model in ("tiny", "loud", "tiny", "loud")] == [0, 0, 99, 99]


def test_every_adapter_is_listed_with_its_parent(server: RunningServer) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        cards = {card.id: card.model_dump() for card in client.models.list()}
        one, same = (client.models.retrieve(name).model_dump() for name in ("loud", "tiny:loud"))
    assert {name: card["parent"] for name, card in cards.items()} == {
        "tiny": None,
        "tiny:loud": "tiny",
        "tiny:other": "tiny",
        "tiny:still": "tiny",
    }
    assert server.get("/models/status")["models"][0]["info"]["lora"] == ["loud", "other", "still"]
    assert (one["parent"], one["root"]) == (same["parent"], same["root"]) == ("tiny", "tiny:loud")


def test_a_flood_of_one_adapter_does_not_hold_another_up(server: RunningServer) -> None:
    with ThreadPoolExecutor(16) as pool:
        flood = [pool.submit(ask, server, model="loud", max_tokens=500, prompt=[i, 7]) for i in range(12)]
        ask(server, model="tiny:other", prompt=[1])
        assert not all(one.done() for one in flood)
        assert all(one.result() for one in flood)


def test_an_adapter_that_is_not_there_is_refused_with_those_that_are(server: RunningServer) -> None:
    with pytest.raises(BadRequestError, match="'loud', 'other', 'still'") as refusal:
        ask(server, model="tiny", extra_body={"lora": "quiet"})
    assert refusal.value.param == "lora"
    with pytest.raises(NotFoundError, match="did you mean 'tiny:loud'"):
        ask(server, model="tiny:lout")
    with pytest.raises(BadRequestError, match="names the adapter 'loud' and lora another"):
        ask(server, model="tiny:loud", extra_body={"lora": "other"})


def test_a_server_does_not_start_with_an_adapter_of_another_model(tiny_model: Path, tmp_path: Path) -> None:
    wrong = write_adapter(tmp_path / "wrong.gguf", TinyAdapter(num_layers=3))
    result = ocak("serve", "--port", "0", tiny_model, f"--lora=x={wrong}")
    assert result.returncode != 0
    assert "the model has no tensor 'blk.2.attn_q.weight': it was made for another model" in result.stderr


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("--override-tensor=nowhere=CPU", "the pattern is in no tensor's name"),
        ("--override-tensor=attn_q=CUDA9", "there is no device CUDA9; this build has CPU"),
        ("--override-tensor=(=CPU", "is no regular expression"),
        ("--context=4096", "--rope-scaling yarn"),
        ("--lora=x=/nowhere.gguf", "there is no model file /nowhere.gguf"),
    ],
)
def test_what_cannot_be_loaded_is_told_at_the_start(tiny_model: Path, flag: str, reason: str) -> None:
    result = ocak("serve", "--port", "0", tiny_model, flag)
    assert result.returncode != 0 and reason in result.stderr.replace("\n", " ")


def test_a_stretched_model_serves_beyond_the_context_it_was_trained_for(tiny_model: Path) -> None:
    flags = ("--rope-scaling", "yarn", "--rope-scale", "2", "--context", "4096", "--parallel", "1", "--cpu-moe")
    with serving(tiny_model, *flags) as running, OpenAI(base_url=f"{running.url}/v1", api_key="none") as client:
        answer = client.completions.create(model="tiny", prompt=[5] * 3000, max_tokens=4, temperature=0)
    assert answer.usage is not None and answer.usage.prompt_tokens == 3000


def test_a_single_answer_is_given_with_the_adapter_that_is_named(tiny_model: Path, tmp_path: Path) -> None:
    paths = {name: write_adapter(tmp_path / f"{name}.gguf", TinyAdapter(seed=1)) for name in ("a", "b")}
    base = ("run", "hello", "--model", tiny_model, "--temperature", "0", "--max-tokens", "12")
    plain, adapted = ocak(*base), ocak(*base, f"--lora=a={paths['a']}")
    assert plain.returncode == adapted.returncode == 0, adapted.stderr
    assert plain.stdout != adapted.stdout
    both = ocak(*base, *(f"--lora={name}={path}" for name, path in paths.items()))
    assert both.returncode != 0 and "give --lora once" in both.stderr
