"""A reference names one whole model, or says what there is instead."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocak.core.errors import DownloadError
from ocak.hub.reference import (
    HubReference,
    RepoFile,
    choose_files,
    is_reference,
    is_safe_path,
    parse_reference,
    quant_of,
)


def listing(*paths: str) -> list[RepoFile]:
    return [RepoFile(path, 10, "sha256:" + "0" * 64) for path in paths]


def chosen(selector: str, *paths: str) -> list[str]:
    return [file.path for file in choose_files(listing(*paths), HubReference("o", "r", selector))]


SPLIT = tuple(f"Q8_0/m-Q8_0-{n:05d}-of-00003.gguf" for n in (1, 2, 3))


def test_a_reference_has_an_owner_a_repository_and_maybe_a_selector() -> None:
    assert parse_reference("hf:Qwen/Qwen3-0.6B-GGUF") == HubReference("Qwen", "Qwen3-0.6B-GGUF")
    assert parse_reference("hf:Qwen/Qwen3-0.6B-GGUF:Q8_0").selector == "Q8_0"
    assert parse_reference("hf:o/r:sub/m.gguf") == HubReference("o", "r", "sub/m.gguf")
    assert parse_reference("hf:o/r").repository == "o/r"
    assert is_reference("hf:o/r")
    assert not is_reference("/models/m.gguf")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hf:",
        "hf:owner",
        "hf:owner/",
        "hf:/repo",
        "owner/repo",
        "hf:o/r/x",
        "hf:../r",
        "hf:o/..",
        "hf:o/.r",
        "hf:o/r..",
        "hf:o /r",
        "hf:o/r?x=1",
        "hf:o/r:",
        "hf:o/r\n",
        "hf:ö/r",
        "hf:o/" + "r" * 97,
        "hf:o/%2e%2e",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(DownloadError, match="is not of the form hf:owner/repo"):
        parse_reference(text)


@given(st.text(max_size=30))
def test_parsing_never_raises_anything_else_nor_lets_a_path_through(text: str) -> None:
    try:
        reference = parse_reference("hf:" + text)
    except DownloadError:
        return
    for part in (reference.owner, reference.repo):
        assert "/" not in part and not part.startswith(".") and ".." not in part


@pytest.mark.parametrize(
    ("path", "quant"),
    [
        ("Qwen3-0.6B-Q8_0.gguf", "Q8_0"),
        ("model.q4_k_m.gguf", "Q4_K_M"),
        ("m-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("m-IQ2_XXS.gguf", "IQ2_XXS"),
        ("m-BF16.gguf", "BF16"),
        ("m-fp16.gguf", "FP16"),
        ("gpt-oss-20b-MXFP4.gguf", "MXFP4"),
        ("Q8_0/m-Q8_0-00001-of-00003.gguf", "Q8_0"),
        ("BF16/m-00001-of-00002.gguf", "BF16"),
        ("Q4_0.gguf", "Q4_0"),
        ("Qwen3.gguf", ""),
        ("phi-4.gguf", ""),
    ],
)
def test_the_quantisation_is_read_from_the_name(path: str, quant: str) -> None:
    assert quant_of(path) == quant


def test_an_exact_name_wins() -> None:
    assert chosen("a-Q4_0.gguf", "a-Q4_0.gguf", "b-Q4_0.gguf") == ["a-Q4_0.gguf"]


def test_a_quantisation_is_found_in_any_case() -> None:
    assert chosen("q8_0", "m-Q4_K_M.gguf", "m-Q8_0.gguf") == ["m-Q8_0.gguf"]
    assert chosen("Q4_K_M", "m.q4_k_m.gguf", "m.q8_0.gguf") == ["m.q4_k_m.gguf"]


def test_a_dynamic_quantisation_stands_in_when_there_is_no_plain_one() -> None:
    assert chosen("q4_k_xl", "m-UD-Q4_K_XL.gguf", "m-Q8_0.gguf") == ["m-UD-Q4_K_XL.gguf"]
    assert chosen("Q4_K_M", "m-UD-Q4_K_M.gguf", "m-Q4_K_M.gguf") == ["m-Q4_K_M.gguf"]


def test_q4_k_m_is_preferred_then_q8_0_then_the_only_one() -> None:
    assert chosen("", "m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-F16.gguf") == ["m-Q4_K_M.gguf"]
    assert chosen("", "m-Q8_0.gguf", "m-F16.gguf") == ["m-Q8_0.gguf"]
    assert chosen("", "README.md", "m.gguf") == ["m.gguf"]


def test_without_a_preferred_one_the_choice_is_left_to_the_user() -> None:
    with pytest.raises(DownloadError, match=r"several models.*m-F16.gguf, m-Q2_K.gguf"):
        chosen("", "m-F16.gguf", "m-Q2_K.gguf")
    with pytest.raises(DownloadError, match=r"several models.*a-Q8_0.gguf, b-Q8_0.gguf"):
        chosen("q8_0", "a-Q8_0.gguf", "b-Q8_0.gguf")


def test_a_split_is_taken_whole_by_any_of_its_names_and_in_order() -> None:
    shuffled = (SPLIT[2], "m-Q2_K.gguf", SPLIT[0], SPLIT[1])
    for selector in ("q8_0", SPLIT[0], SPLIT[1], ""):
        assert chosen(selector, *shuffled) == list(SPLIT)


def test_a_split_with_a_part_missing_is_refused_only_when_chosen() -> None:
    with pytest.raises(DownloadError, match="not Q8_0/m-Q8_0-00002-of-00003.gguf"):
        chosen("Q8_0", SPLIT[0], SPLIT[2], "m-Q4_K_M.gguf")
    assert chosen("", SPLIT[0], SPLIT[2], "m-Q4_K_M.gguf") == ["m-Q4_K_M.gguf"]


def test_projectors_and_importance_matrices_are_ignored() -> None:
    assert chosen("", "mmproj-F16.gguf", "imatrix_unsloth.gguf", "m-F16.gguf") == ["m-F16.gguf"]


def test_what_is_not_there_is_answered_with_what_is() -> None:
    with pytest.raises(DownloadError, match=r"no 'Q3_K'; there is: m-Q4_K_M.gguf, m-Q8_0.gguf"):
        chosen("Q3_K", "m-Q4_K_M.gguf", "m-Q8_0.gguf")
    with pytest.raises(DownloadError, match=r"named 'm-Q8_O.gguf'; there is: m-Q8_0.gguf"):
        chosen("m-Q8_O.gguf", "m-Q8_0.gguf", "other.gguf")
    with pytest.raises(DownloadError, match="holds no GGUF model"):
        chosen("", "model.safetensors")


@pytest.mark.parametrize(
    "path",
    [
        "../m.gguf",
        "a/../../m.gguf",
        "/m.gguf",
        "a//m.gguf",
        "a\\m.gguf",
        ".ocak/m.gguf",
        "a/.hidden.gguf",
        "m\n.gguf",
    ],
)
def test_a_path_that_leaves_the_folder_is_refused(path: str) -> None:
    assert not is_safe_path(path)
    with pytest.raises(DownloadError, match="unsafe"):
        chosen("", path)


@given(
    st.lists(st.text(alphabet="aQ48_0KM-./f1", max_size=12).map(lambda s: s + ".gguf"), max_size=8),
    st.text(max_size=9),
)
def test_a_choice_is_one_whole_model_or_an_explained_error(paths: list[str], selector: str) -> None:
    try:
        files = chosen(selector, *paths)
    except DownloadError as error:
        assert "o/r" in error.message
        return
    assert files
    assert set(files) <= set(paths)
    assert all(is_safe_path(path) for path in files)
