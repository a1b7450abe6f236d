"""Long documents are cut at token boundaries, at sentence ends where one is near, and nothing of them is lost."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_ranker_plugins.prompt import EncodedRequest, ModelTokenizer, PromptEncoder, as_utf8
from qwen3_ranker_plugins.prompt.pieces import original_offset
from qwen3_ranker_plugins.types import Pieces

MOTIFS = [
    *("The cat sat on the mat. ", "word ", "supercalifragilistic", "a", " ", "\n", "\n\n", "\t", "e.g. this! ", "?"),
    *(
        "中文没有空格的句子。",
        "日本語、",
        "👩\u200d👧",
        "😀",
        "\ud83d",
        "\ud83d\ude00",
        "\ude00",
        "e\u0301",
        "क\u093c",
        "\u0958",
    ),
    *("ไทยกก็", "한국어 문장입니다. ", "1234567890", "=" * 20, "<|im_end|>", "</think>", "\u3000", "\x00"),
]
texts = st.lists(
    st.tuples(st.sampled_from(MOTIFS) | st.characters(), st.sampled_from([1, 1, 2, 5, 40])), max_size=12
).map(lambda parts: "".join(motif * times for motif, times in parts))


def in_pieces(
    tokenizer: ModelTokenizer, text: str, pieces: Pieces, *, most: int | None = None, max_length: int = 8192
) -> EncodedRequest:
    return PromptEncoder(tokenizer, max_length=max_length).encode("q", [text], None, most, pieces)


def ranges(request: EncodedRequest) -> list[tuple[int, int]]:
    assert request.pieces is not None
    return [(piece.start, piece.end) for piece in request.pieces]


@settings(max_examples=30)
@given(text=texts, tokens=st.integers(1, 40), share=st.floats(0, 0.5), data=st.data())
@pytest.mark.parametrize("which", ["tiny_tokenizer", "qwen3_tokenizer"])
def test_pieces_cover_the_text_and_are_encoded_as_texts_of_their_own(
    request: pytest.FixtureRequest, which: str, text: str, tokens: int, share: float, data: st.DataObject
) -> None:
    """The ids of each piece are those of its text in a request of its own; neighbours share at most the overlap."""
    tokenizer: ModelTokenizer = request.getfixturevalue(which)
    encoder = PromptEncoder(tokenizer)
    limit = data.draw(st.sampled_from([1, 2, 10_000]))
    pieces = Pieces(tokens, int(tokens * share), limit)
    encoded = in_pieces(tokenizer, text, pieces)
    found = ranges(encoded)
    assert found[0][0] == 0
    assert len(found) == len(encoded.segments) <= limit
    suffix = len(encoder.suffix_ids)
    cut_alone = 0  # text cut out of its surroundings may have more tokens than it has in the whole
    for (start, end), segment, cut in zip(found, encoded.segments, encoded.truncated_tokens, strict=True):
        [alone] = encoder.encode("q", [text[start:end]], None).segments
        cut_alone += max(0, len(alone) - suffix - tokens)
        assert len(segment) - suffix <= tokens
        # One character may have more tokens than a piece: it is cut, and says so.
        assert segment == alone or (cut > 0 and segment[:-suffix] == alone[: len(segment) - suffix])
    original = original_offset(text)
    tokens_of_text = tokenizer.plain.encode(as_utf8(text), add_special_tokens=False)
    offsets = [(original(left), original(right)) for left, right in tokens_of_text.offsets]
    most_of_character = max(Counter(offsets).values(), default=0)
    for (start, end), (following, following_end) in pairwise(found):
        assert start < following <= end < following_end
        # The tokens of one character are not separated.
        assert sum(following <= left and right <= end for left, right in offsets) <= pieces.overlap + most_of_character
    whole = len(encoder.encode("q", [text], None).segments[0]) - suffix
    if found[-1][1] == len(text):
        assert sum(encoded.truncated_tokens) == 0 or tokens < 12
    else:
        assert len(found) == limit
        assert 0 < sum(encoded.truncated_tokens) <= whole + cut_alone
    if whole <= tokens:
        assert found == [(0, len(text))]


@pytest.mark.parametrize("extra", [0, 1])
def test_exactly_a_piece_is_not_cut_and_one_token_more_is(qwen3_tokenizer: ModelTokenizer, extra: int) -> None:
    text = ("one two three four five six seven eight " * 8).strip() + " one" * extra
    count = len(qwen3_tokenizer.encode(" " + text))
    assert len(ranges(in_pieces(qwen3_tokenizer, text, Pieces(64, 8)))) == (1 if count <= 64 else 2)
    assert count == 64 + extra


def test_cuts_are_at_sentence_ends_where_one_is_near(qwen3_tokenizer: ModelTokenizer) -> None:
    sentences = [
        f"Sentence number {number} says that something happened in the year {1900 + number}." for number in range(60)
    ]
    text = " ".join(sentences)
    found = ranges(in_pieces(qwen3_tokenizer, text, Pieces(100, 30)))
    assert len(found) > 5
    for start, end in found:
        assert text[start:].startswith("Sentence number")
        assert text[start:end].rstrip().endswith(".")
    assert any(following < end for (_, end), (following, _) in pairwise(found))


def test_cuts_are_between_words_where_no_sentence_ends(qwen3_tokenizer: ModelTokenizer) -> None:
    text = "internationalisation " * 200
    found = ranges(in_pieces(qwen3_tokenizer, text, Pieces(50, 10)))
    assert len(found) > 5
    assert all(re.fullmatch("(internationalisation )+", text[start:end]) for start, end in found)


def test_sentences_of_scripts_without_spaces(qwen3_tokenizer: ModelTokenizer) -> None:
    text = "这是一个很长的中文句子，里面没有任何空格。" * 40
    found = ranges(in_pieces(qwen3_tokenizer, text, Pieces(60, 0)))
    assert all(text[start:end].endswith("。") for start, end in found)
    assert "".join(text[start:end] for start, end in found) == text


def test_offsets_are_into_the_text_as_it_was_given(qwen3_tokenizer: ModelTokenizer) -> None:
    """Two surrogates in a Python string are read as one character; offsets count both."""
    text = "\ud83d\ude00 a smile in two halves. " * 40 + "\ud83d"
    found = ranges(in_pieces(qwen3_tokenizer, text, Pieces(32, 0)))
    assert "".join(text[start:end] for start, end in found) == text
    assert all(as_utf8(text[start:end]).count("\ufffd") == 0 for start, end in found[:-1])


def test_the_prompt_bounds_a_piece(tiny_tokenizer: ModelTokenizer) -> None:
    text = "a few words of text " * 100
    encoded = in_pieces(tiny_tokenizer, text, Pieces(512, 64), max_length=100)
    assert max(map(len, encoded.segments)) + encoded.prefix_length <= 100
    assert ranges(encoded)[-1][1] == len(text)
    assert sum(encoded.truncated_tokens) == 0


def test_only_the_first_pieces_are_read(tiny_tokenizer: ModelTokenizer) -> None:
    text = "a few words of text. " * 1000
    count = len(tiny_tokenizer.encode(" " + text))
    encoded = in_pieces(tiny_tokenizer, text, Pieces(50, 0, 3))
    assert len(encoded.segments) == 3
    end = ranges(encoded)[-1][1]
    assert sum(encoded.truncated_tokens) == count - len(tiny_tokenizer.encode(" " + text[: end - 1]))


def test_reading_stops_before_a_character_of_several_tokens(qwen3_tokenizer: ModelTokenizer) -> None:
    """Each of the two signs is two tokens: a limit between them leaves the sign out."""
    text = "a\U00012000b\U00012001"
    assert len(qwen3_tokenizer.encode(" " + text)) == 6
    ends = [ranges(in_pieces(qwen3_tokenizer, text, Pieces(100, 0), most=most))[-1][1] for most in range(1, 7)]
    assert ends == [1, 1, 2, 3, 3, 4]


def test_a_limit_of_the_document_comes_first(tiny_tokenizer: ModelTokenizer) -> None:
    text = "a few words of text. " * 1000
    count = len(tiny_tokenizer.encode(" " + text))
    encoded = in_pieces(tiny_tokenizer, text, Pieces(50, 0), most=120)
    assert len(encoded.segments) == 3
    assert sum(encoded.truncated_tokens) == count - 120
    assert len(tiny_tokenizer.encode(" " + text[: ranges(encoded)[-1][1]].rstrip())) == 120
    # A limit below a piece means what it means without pieces.
    short = in_pieces(tiny_tokenizer, text, Pieces(50, 0), most=20)
    truncated = PromptEncoder(tiny_tokenizer).encode("q", [text], None, 20)
    assert short.segments == truncated.segments
    assert short.truncated_tokens == truncated.truncated_tokens
    assert len(tiny_tokenizer.encode(" " + text[: ranges(short)[0][1]])) == 20


def test_a_long_text_is_tokenized_as_far_as_its_pieces_reach(
    tiny_tokenizer: ModelTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "the quick brown fox jumps over the lazy dog. " * 90_000
    read = 0
    encode = type(tiny_tokenizer.plain).encode

    class Counting:
        def __getattr__(self, name: str) -> object:
            return getattr(plain, name)

        def encode(self, sequence: str, **options: bool) -> object:
            nonlocal read
            read += len(sequence)
            return encode(plain, sequence, **options)

    plain = tiny_tokenizer.plain
    monkeypatch.setattr(tiny_tokenizer, "plain", Counting())
    encoded = in_pieces(tiny_tokenizer, text, Pieces(512, 64, 8))
    assert len(encoded.segments) == 8
    assert sum(encoded.truncated_tokens) > 0
    assert len(text) > 4_000_000
    assert read < 200_000
