"""The first ids of a long text are those of the whole text, and the rest of it costs nothing."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ranker_plugins import PromptTooLongError, Request, Reranker
from qwen3_ranker_plugins.prompt import DEFAULT_INSTRUCTION, ModelTokenizer, PromptEncoder
from qwen3_ranker_plugins.prompt.beginning import SLICE, encode_beginnings
from qwen3_ranker_plugins.prompt.side_by_side import cut_after_words, encode_side_by_side

MOTIFS = [
    *(" ", "\n", "\r\n", "\t", "\u3000", "\x85", "\x1c", "a", "A", "aab", "ab", "the ", "word ", "don't ", "'s", "'ll"),
    *("!", "=", "-", "...", "1", "12", "3.14 ", "中", "中文字，", "日本語。", "カ\u3099", "é", "e\u0301", "क\u093c"),
    *(
        "\u0958",
        "हिन्दी ",
        "ไทยกก็",
        "한국",
        "\u1100\u1161\u11a8",
        "👩\u200d👧",
        "Ａ",
        "\u212b",
        "x\u0338",
        "<",
        "</think>",
    ),
    *("\ud83d", "\u200b", "ſ", "ß", "\U0001d15e", "Fluxomat", "Fluxomat ", "XJ 9000", "é12", " Qlip", "Qlip"),
]
runs = st.tuples(st.sampled_from(MOTIFS) | st.characters(), st.sampled_from([1, 1, 1, 2, 3, 10, 100, 1000, 3000]))


def cut_by_definition(text: str) -> bool:
    """A run that leaves no place to cut in the slices of these tests.

    Line breaks after punctuation, blanks after line breaks, added tokens that touch but count as separate words, blanks
    that belong to the added token after them, and characters that Python's Unicode does not have.
    """
    unknown = {each for each in set(text) if unicodedata.category(each) == "Cn"}
    runs = any(each * 100 in text.replace("\r\n", "\n") for each in {"\n", "\x85", "\r", "Fluxomat"} | unknown)
    return runs or re.search(r"[\n\r\x85\u2028\u2029]\s{900}|\s{900}Qlip", text) is not None


texts = st.lists(runs, min_size=1, max_size=12).map(lambda parts: "".join(motif * times for motif, times in parts))
texts = texts.filter(lambda text: not cut_by_definition(text))


@pytest.fixture(scope="module")
def added_tokenizer(qwen3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    """The tokenizer of a fine-tune that was taught words: some count anywhere, some between blanks only."""
    folder = tmp_path_factory.mktemp("added")
    specification = json.loads((qwen3_folder / "tokenizer.json").read_text())
    first = max(token["id"] for token in specification["added_tokens"]) + 1
    words = [("Fluxomat", True, False), ("XJ 9000", False, False), ("é12", False, False), ("Qlip", False, True)]
    for token_id, (content, alone, left) in enumerate(words, start=first):
        specification["added_tokens"].append(
            {"id": token_id, "content": content, "single_word": alone, "lstrip": left, "rstrip": alone}
            | {"normalized": content == "é12", "special": False}
        )
    (folder / "tokenizer.json").write_text(json.dumps(specification))
    return ModelTokenizer(folder)


@settings(max_examples=40)
@given(text=texts, count=st.sampled_from([1, 5, 50, 500]), slice_length=st.sampled_from([1200, 2000, 4000]))
@pytest.mark.parametrize("which", ["tiny_tokenizer", "qwen3_tokenizer", "added_tokenizer"])
def test_they_are_those_of_the_whole_text(
    request: pytest.FixtureRequest, which: str, text: str, count: int, slice_length: int
) -> None:
    tokenizer: ModelTokenizer = request.getfixturevalue(which)
    [whole] = tokenizer.encode_batch([text])
    [(ids, all_encoded)] = encode_beginnings(tokenizer, [text], count, slice_length=slice_length)
    assert ids == whole[: len(ids)]
    assert (len(ids) == len(whole)) if all_encoded else (count <= len(ids) < len(whole))


@settings(max_examples=40)
@given(text=texts, length=st.sampled_from([1, 7, 50]))
@pytest.mark.parametrize("which", ["tiny_tokenizer", "qwen3_tokenizer"])
def test_parts_that_end_with_a_word_have_the_ids_of_the_whole_text(
    request: pytest.FixtureRequest, which: str, text: str, length: int
) -> None:
    tokenizer: ModelTokenizer = request.getfixturevalue(which)
    parts = cut_after_words(text, length)
    assert "".join(parts) == text
    assert [token_id for ids in tokenizer.encode_batch(parts) for token_id in ids] == tokenizer.encode_batch([text])[0]


def test_a_few_long_texts_are_encoded_in_parts(tiny_tokenizer: ModelTokenizer, added_tokenizer: ModelTokenizer) -> None:
    """With added words, which may span such a place, a text stays whole."""
    long = "A word of Fluxomat, and 一个句子。 " * 500
    assert [len(cut_after_words(text)) for text in ("", long)] == [1, 3]
    for tokenizer, cut in ((tiny_tokenizer, True), (added_tokenizer, False)):
        assert tokenizer.words_end_alone == cut
        assert encode_side_by_side(tokenizer, ["", long, "a"]) == tokenizer.encode_batch(["", long, "a"])


@pytest.mark.parametrize("motif", ["Fluxomat ", "Fluxomat, ", "(Fluxomat)", " Qlip", "Qlip", "XJ 9000 ", "XJ 9000"])
def test_runs_of_added_tokens(added_tokenizer: ModelTokenizer, motif: str) -> None:
    """Some count as separate words only, and white space after or before them belongs to them."""
    text = motif * 1000
    [whole] = added_tokenizer.encode_batch([text])
    for slice_length in range(1200, 1240):
        [(ids, _)] = encode_beginnings(added_tokenizer, [text], 500, slice_length=slice_length)
        assert ids == whole[: len(ids)]
        assert len(ids) >= 500


def test_white_space_that_belongs_to_an_added_token(added_tokenizer: ModelTokenizer) -> None:
    """It may be longer than a slice."""
    for text in (
        "Fluxomat" + " " * 3000 + "word",
        "Fluxomat" + "\n " * 1500,
        "a " * 400 + "Fluxomat" + " " * 3000 + "\x1c",
    ):
        [whole] = added_tokenizer.encode_batch([text])
        assert encode_beginnings(added_tokenizer, [text], 500, slice_length=1200) == [(whole, True)]


@pytest.mark.parametrize("separators", ["\x1c" * 2, "\x1d\x1e\x1f" * 30])
def test_separators_that_only_python_counts_as_blanks(tiny_tokenizer: ModelTokenizer, separators: str) -> None:
    text = ":" * 1000 + separators + " " * 3000
    [whole] = tiny_tokenizer.encode_batch([text])
    [(ids, _)] = encode_beginnings(tiny_tokenizer, [text], 1, slice_length=1200)
    assert ids == whole[: len(ids)]


@pytest.mark.parametrize("blanks", [1000, 1150, 1199])
def test_blanks_before_a_run_of_a_letter(qwen3_tokenizer: ModelTokenizer, blanks: int) -> None:
    """The last blank belongs to the run, of which the slice holds less than a token, or none."""
    text = " " * blanks + "a" * 1000
    [whole] = qwen3_tokenizer.encode_batch([text])
    [(ids, _)] = encode_beginnings(qwen3_tokenizer, [text], 500, slice_length=1200)
    assert ids == whole[: len(ids)]


@pytest.mark.parametrize(
    "motif",
    ["the quick brown fox ", "a", "ab", " ", "=", "\n", "中", "e\u0301", "0", "👩\u200d👧", "ไทยกก็"],
)
@pytest.mark.parametrize("which", ["tiny_tokenizer", "qwen3_tokenizer"])
def test_hundreds_of_thousands_of_characters_are_read_as_far_as_they_count(
    request: pytest.FixtureRequest, which: str, motif: str
) -> None:
    """Among them runs that are a single piece of the pre-tokenizer."""
    tokenizer: ModelTokenizer = request.getfixturevalue(which)
    text = motif * (300_000 // len(motif))
    [(ids, whole)] = encode_beginnings(tokenizer, [text], 1_000)
    assert not whole
    assert 1_000 <= len(ids) <= 1_000 + 3 * SLICE, "one slice more than was asked for, at most"
    [expected] = tokenizer.encode_batch([text[: 2 * SLICE]])
    assert ids[:1_000] == expected[:1_000]


def test_long_and_short_texts_of_a_request(qwen3_tokenizer: ModelTokenizer) -> None:
    """Both kinds share batches; what is read whole has an exact count, the rest says "at least"."""
    encoder = PromptEncoder(qwen3_tokenizer, max_length=600)
    documents = ["short", "word " * 1_000, "word " * 300_000, "", "wörd " * 200_000, "a" * 1_000_000]
    request = encoder.encode("q", documents, DEFAULT_INSTRUCTION)
    alone = [encoder.encode("q", [document[:50_000]], DEFAULT_INSTRUCTION) for document in documents]
    assert request.segments == [each.segments[0] for each in alone]
    assert request.truncated_tokens[:2] == alone[0].truncated_tokens + alone[1].truncated_tokens
    assert request.truncated_tokens[3] == 0
    for short, cut in zip(alone[2:], request.truncated_tokens[2:], strict=True):
        assert short.truncated_tokens[0] <= cut
    assert request.truncated_tokens[2] >= 10_000


def test_text_after_a_long_document(qwen3_tokenizer: ModelTokenizer) -> None:
    encoder = PromptEncoder(qwen3_tokenizer, "{query}\n{document}\nRelevant:<|im_end|>", max_length=600)
    long, cut = "word " * 100_000, "word " * 10_000
    assert encoder.encode("q", [long], None).segments == encoder.encode("q", [cut], None).segments
    limited = encoder.encode("q", [long], None, max_document_tokens=7)
    assert limited.segments == encoder.encode("q", [cut], None, max_document_tokens=7).segments
    assert limited.truncated_tokens[0] >= 10_000


@pytest.mark.parametrize("argument", ["query", "instruction"])
def test_a_query_of_megabytes_is_refused_without_being_encoded(qwen3_tokenizer: ModelTokenizer, argument: str) -> None:
    encoder = PromptEncoder(qwen3_tokenizer)
    arguments = {"query": "q", "instruction": "i"} | {argument: "word " * 1_000_000}
    with pytest.raises(PromptTooLongError, match=f"{argument}=.*5000000 characters.*max_length=8192"):
        encoder.encode(arguments["query"], ["document"], arguments["instruction"])
    compact = PromptEncoder(qwen3_tokenizer, "{query} {document}<|im_end|>")
    if argument == "instruction":
        assert compact.encode("q", ["document"], arguments["instruction"]).truncated_tokens == [0]


def test_a_cancelled_request_is_not_encoded_to_its_end(reranker: Reranker) -> None:
    prepared = reranker.prepare(Request("q", [f"{number} " + "word " * 60_000 for number in range(40)]))
    turns = reranker.submit_in_turns(prepared)
    next(turns)
    read = prepared.num_tokens
    assert 0 < read < 40 * 8_192 / 4
    prepared.cancel()
    assert list(turns) == []
    assert prepared.num_tokens == read
    whole = reranker.prepare(Request("q", [f"{number} " + "word " * 60_000 for number in range(6)]))
    assert reranker.encode(whole).truncated_tokens == [cut for _, cut in whole.truncated]
    assert len(whole.truncated) == 6
