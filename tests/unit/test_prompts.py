"""Chat templates in their sandbox, and prompts of every kind."""

from __future__ import annotations

import pytest

from ocak.core.errors import InvalidRequest, LoadFailed
from ocak.core.request import ChatPrompt, InfillPrompt, Message, TextPrompt, TokenPrompt
from ocak.llama.vocabulary import InfillTokens
from ocak.worker import template as template_module
from ocak.worker.chat import Chat
from ocak.worker.prompt import PromptReader
from ocak.worker.stopwatch import Stopwatch
from ocak.worker.template import ChatTemplate as SandboxedTemplate
from ocak.worker.template import TemplateValue

CHATML = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TALK = (Message("system", "be brief"), Message("user", "çay?"))


def ChatTemplate(source: str, constants: dict[str, TemplateValue]) -> SandboxedTemplate:  # noqa: N802
    return SandboxedTemplate(source, constants, Stopwatch())


class Letters:
    """A vocabulary in which every character is its code point."""

    size = 0x110000
    bos_text = "<s>"
    infill: InfillTokens | None = InfillTokens(1, 2, 3)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return [*([0] if add_special else []), *map(ord, text)]

    def text(self, tokens: tuple[int, ...]) -> str:
        return "".join(map(chr, tokens))


def test_a_template_renders_the_conversation() -> None:
    assert ChatTemplate(CHATML, {"bos_token": ""}).render(TALK) == "[system]be brief[user]çay?[assistant]"


def test_configured_arguments_reach_the_template() -> None:
    template = ChatTemplate("{% if enable_thinking %}think{% endif %}", {"enable_thinking": True})
    assert template.render(TALK) == "think"


def test_templates_use_what_model_files_use() -> None:
    source = (
        "{%- set ns = namespace(n=0) -%}{%- for m in messages -%}{%- if m.role == 'system' -%}{%- continue -%}"
        "{%- endif -%}{%- set ns.n = ns.n + 1 -%}{{ m.content | trim | tojson }}{%- endfor -%}{{ ns.n }}"
        "{{ strftime_now('%Y') | length }}"
    )
    assert ChatTemplate(source, {}).render(TALK) == '"çay?"14'


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ '%s' | format(range.__class__.__bases__) }}",
        "{% for i in range(10000000) %}x{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ messages[99].content.x }}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ nothing.at.all }}",
        "{{ 'x' * 10 ** 10 }}",
        "{{ 10 ** 10 * 'x' }}",
        "{{ messages[0].content * 10 ** 9 }}",
        "{{ 10 ** 100 }}",
        "{{ '%9999999999d' % 1 }}",
        "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ ''|dictsort }}",
    ],
)
def test_a_hostile_or_broken_template_is_the_requests_error(attack: str) -> None:
    with pytest.raises(InvalidRequest, match="template"):
        ChatTemplate(attack, {}).render(TALK)


def test_a_template_that_writes_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "MAX_CHARACTERS", 1000)
    with pytest.raises(InvalidRequest, match="1000 characters"):
        ChatTemplate("{% for i in range(9999) %}xxxxxxxxxx{% endfor %}", {}).render(TALK)


def test_a_bomb_that_could_be_folded_at_compile_time_is_not() -> None:
    ChatTemplate("{{ 'x' * 10 ** 10 }}", {})


def test_marks_for_training_are_passed_over() -> None:
    source = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    assert ChatTemplate(source, {}).render(TALK) == "be briefçay?"


def test_a_template_that_does_not_compile_fails_the_load() -> None:
    with pytest.raises(LoadFailed, match="does not compile"):
        ChatTemplate("{% if %}", {})


def test_bos_is_not_doubled() -> None:
    with_bos = PromptReader(Letters(), Chat(ChatTemplate(CHATML, {"bos_token": "<s>"}))).read(ChatPrompt(TALK))
    without = PromptReader(Letters(), Chat(ChatTemplate(CHATML, {"bos_token": ""}))).read(ChatPrompt(TALK))
    assert with_bos[0] == ord("<") and without[0] == 0


def test_infill_has_its_marks_around_plain_text() -> None:
    assert PromptReader(Letters(), None).read(InfillPrompt("a", "b")) == [1, ord("a"), 2, ord("b"), 3]


def test_what_a_model_lacks_is_said() -> None:
    bare = Letters()
    bare.infill = None
    with pytest.raises(InvalidRequest, match="fill-in-the-middle") as no_infill:
        PromptReader(bare, None).read(InfillPrompt("a", "b"))
    assert no_infill.value.param == "suffix"
    with pytest.raises(InvalidRequest, match="chat template"):
        PromptReader(bare, None).read(ChatPrompt(TALK))


def test_token_prompts_are_checked_and_surrogates_refused() -> None:
    reader = PromptReader(Letters(), None)
    assert reader.read(TokenPrompt((5, 6))) == [5, 6]
    for wrong in (TokenPrompt((-1,)), TokenPrompt((0x110000,)), TextPrompt("\ud800")):
        with pytest.raises(InvalidRequest):
            reader.read(wrong)
    assert reader.write((104, 105)) == "hi"
