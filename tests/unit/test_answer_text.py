"""Bytes to safe text: characters stay whole and stop strings never leak."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from ocak.worker.text import AnswerText

texts = st.text(alphabet="abcé€😀\n ", max_size=40)
stops = st.lists(st.text(alphabet="abcé€😀", min_size=1, max_size=4), max_size=3)


def feed(data: bytes, cuts: list[int], stop: list[str]) -> tuple[list[str], bool]:
    """Push `data` in pieces cut at the given places; return the texts and whether a stop string was met."""
    answer = AnswerText(stop)
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    out = []
    for start, end in zip(places, places[1:], strict=False):
        out.append(answer.push(data[start:end]))
        if answer.is_stopped:
            return out, True
    out.append(answer.finish())
    return out, answer.is_stopped


@given(texts, st.lists(st.integers(0, 200)))
def test_pieces_put_together_are_the_text_and_no_character_is_split(text: str, cuts: list[int]) -> None:
    out, _ = feed(text.encode(), cuts, [])
    assert "".join(out) == text
    assert "\ufffd" not in "".join(out)


@given(texts, st.lists(st.integers(0, 200)), stops)
@example("baa", [2], ["a", "baa"])
@example("baa", [], ["a", "baa"])
@example("xab", [], ["b", "ab"])
def test_the_text_ends_before_its_first_stop_string(text: str, cuts: list[int], stop: list[str]) -> None:
    out, stopped = feed(text.encode(), cuts, stop)
    found = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    assert stopped == bool(found)
    assert "".join(out) == (text[: min(found)[1]] if found else text)


@given(st.binary(max_size=60), st.lists(st.integers(0, 200)))
def test_wrong_utf8_becomes_the_replacement_character_and_nothing_is_raised(data: bytes, cuts: list[int]) -> None:
    out, _ = feed(data, cuts, [])
    assert "".join(out) == data.decode("utf-8", "replace")


def test_what_could_be_a_stop_string_is_held_back_only_until_it_is_not() -> None:
    answer = AnswerText(["END"])
    assert answer.push(b"the E") == "the "
    assert answer.push(b"N") == ""
    assert answer.push(b"T") == "ENT"


def test_a_stop_string_counts_for_nothing_in_the_first_tokens() -> None:
    answer = AnswerText(["b"], min_tokens=2)
    assert [answer.push(piece) for piece in (b"ab", b"b")] == ["ab", "b"] and not answer.is_stopped
    assert answer.push(b"ab") == "a" and answer.is_stopped
