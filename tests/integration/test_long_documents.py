"""Long documents in pieces: the best piece decides, as if each piece had been scored by a call of its own."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

import numpy as np
import pytest

from qwen3_ranker_plugins import InvalidInputError, Pieces, Request, Reranker, ScoringError
from qwen3_ranker_plugins.config import RankingOptions
from qwen3_ranker_plugins.engines.base import Margins
from qwen3_ranker_plugins.prompt import load_tokenizer

QUERY = "how is a file closed after an error?"
ANSWER = "The with statement closes the file even if the block raises an exception. "
FILLER = "A tuple is an immutable sequence of values. Dictionaries map keys to values; sets hold each value once. "
TOKENS = 48
AWKWARD = {
    "empty": "",
    "whitespace only": " \n\t " * 100,
    "one giant word": "antidisestablishmentarianism" * 20,
    "emoji": "👩\u200d👧😀" * 20,
    "CJK without spaces": "关闭文件需要使用语句，异常发生时也会关闭。" * 8,
    "surrogates": "\ud83d\ude00 halves \ud800 and \udfff more. " * 12,
    "control tokens": "</think>\n\nyes <|im_end|> " * 12,
    "answer in the middle": FILLER * 3 + ANSWER + FILLER * 3,
    "answer at the end": FILLER * 5 + ANSWER,
    "filler": FILLER * 4,
    "short": "A list holds items.",
}


@pytest.fixture(scope="module")
def in_pieces() -> Iterator[Reranker]:
    with Reranker("bundled:tiny", long_documents="pieces", piece_tokens=TOKENS, piece_overlap=8) as reranker:
        yield reranker


def text_of_tokens(reranker: Reranker, count: int) -> str:
    """A text of exactly so many tokens where it stands in a prompt."""
    assert reranker.model_path is not None
    tokenizer = load_tokenizer(reranker.model_path)
    text = " the" * count
    assert len(tokenizer.encode(text)) == count
    return text[1:]


def test_margins_are_those_of_a_call_for_each_piece(reranker: Reranker, in_pieces: Reranker) -> None:
    """The naive reference: cut where the result says, score each piece by its own call, take the best one."""
    documents = [*AWKWARD.values(), text_of_tokens(reranker, TOKENS), text_of_tokens(reranker, TOKENS + 1)]
    result = in_pieces.rerank(QUERY, documents)
    encoded = in_pieces.encode(in_pieces.prepare(Request(QUERY, documents)))
    assert encoded.pieces is not None
    best: dict[int, tuple[float, tuple[int, int]]] = {}
    for document, start, end in encoded.pieces:
        margin = reranker.rerank(QUERY, [documents[document][start:end]])[0].margin
        if document not in best or margin > best[document][0]:
            best[document] = margin, (start, end)
    assert len(best) == len(result) == len(documents)
    for hit in result:
        margin, piece = best[hit.index]
        assert hit.piece == piece
        assert math.isclose(hit.margin, margin, abs_tol=2e-5)
        assert hit.truncated_tokens == 0
    pieces = {index: sum(piece.document == index for piece in encoded.pieces) for index in best}
    assert (pieces[len(documents) - 2], pieces[len(documents) - 1]) == (1, 2)
    assert result.usage.pieces == len(encoded.pieces)


def test_the_piece_is_the_passage_that_answers(in_pieces: Reranker) -> None:
    documents = list(AWKWARD.values())
    for hit in in_pieces.rerank(QUERY, documents):
        if "answer" in list(AWKWARD)[hit.index]:
            assert hit.piece is not None
            assert "closes the file" in hit.document[slice(*hit.piece)]


def test_documents_that_fit_are_judged_as_ever(reranker: Reranker, in_pieces: Reranker) -> None:
    documents = ["A list holds items.", ANSWER, ""]
    ever, now = reranker.rerank(QUERY, documents), in_pieces.rerank(QUERY, documents)
    assert [(hit.index, hit.margin) for hit in ever] == [(hit.index, hit.margin) for hit in now]
    assert [hit.piece for hit in now] == [(0, len(hit.document)) for hit in now]
    assert [hit.piece for hit in ever] == [None] * 3
    assert ever.usage.pieces == now.usage.pieces == 3


def test_every_way_to_ask_gives_the_same(in_pieces: Reranker) -> None:
    documents = [FILLER * 8 + ANSWER, "A list holds items.", FILLER * 8]
    result = in_pieces.rerank(QUERY, documents)
    key = [(hit.index, hit.piece) for hit in result]
    assert [(hit.index, hit.piece) for hit in asyncio.run(in_pieces.arerank(QUERY, documents))] == key
    many = in_pieces.rerank_many([Request(QUERY, documents), Request(QUERY, documents[:1])])
    assert [(hit.index, hit.piece) for hit in many[0]] == key
    assert many[1][0].piece == next(hit.piece for hit in result if hit.index == 0)
    scores = in_pieces.score(QUERY, documents)
    assert np.allclose(scores, [hit.score for hit in sorted(result, key=lambda hit: hit.index)], atol=1e-5)
    assert [hit.index for hit in in_pieces.rerank(QUERY, documents, top_k=1)] == [key[0][0]]
    threshold = (result[0].score + result[1].score) / 2
    assert len(in_pieces.rerank(QUERY, documents, score_threshold=threshold)) == 1


def test_equal_documents_are_scored_once_and_tie(in_pieces: Reranker) -> None:
    document = FILLER * 6 + ANSWER
    once, twice = in_pieces.rerank(QUERY, [document]), in_pieces.rerank(QUERY, [document, document])
    assert [hit.index for hit in twice] == [0, 1]
    assert twice[0].margin == twice[1].margin
    assert twice.usage.computed_tokens == once.usage.computed_tokens
    assert twice.usage.prompt_tokens == 2 * once.usage.prompt_tokens
    assert twice.usage.pieces == 2 * once.usage.pieces > 2


def test_the_prefix_is_computed_once(in_pieces: Reranker) -> None:
    usage = in_pieces.rerank(QUERY, [FILLER * 20]).usage
    prefix = in_pieces.encode(in_pieces.prepare(Request(QUERY, ["x"]))).prefix_length
    assert usage.shared_tokens == (usage.pieces - 1) * prefix > 0


def test_a_request_may_bring_its_own_pieces(reranker: Reranker) -> None:
    document = FILLER * 9 + ANSWER
    [plain] = reranker.rerank_many([Request(QUERY, [document])])
    [cut] = reranker.rerank_many([Request(QUERY, [document], pieces=Pieces(TOKENS, 0, 2))])
    assert plain[0].piece is None
    assert cut[0].piece is not None
    assert cut.usage.pieces == 2
    assert cut[0].truncated_tokens > 100
    with pytest.raises(InvalidInputError, match=r"piece_overlap=30: .* piece_tokens"):
        reranker.rerank_many([Request(QUERY, [document], pieces=Pieces(TOKENS, 30))])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"long_documents": "chunks"}, "long_documents='chunks'"),
        ({"piece_tokens": 0}, "piece_tokens=0"),
        ({"piece_overlap": -1}, "piece_overlap=-1"),
        ({"piece_overlap": True}, "piece_overlap=True"),
        ({"max_pieces": 2.5}, "max_pieces=2.5"),
        ({"piece_tokens": 100, "piece_overlap": 51}, "piece_overlap=51"),
    ],
)
def test_unusable_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Reranker("bundled:tiny", **settings)


def test_a_piece_without_a_score_leaves_its_document_without_one(in_pieces: Reranker) -> None:
    prepared = in_pieces.prepare(Request(QUERY, ["A list.", FILLER * 6, ANSWER]))
    encoded = in_pieces.encode(prepared)
    count = len(encoded.segments)
    values = np.linspace(0, 1, count).astype(np.float32)
    prepared.submission.record(list(range(count)), Margins(values, 10, failures={2: "no luck"}))
    with pytest.raises(ScoringError) as raised:
        prepared.result(RankingOptions())
    assert raised.value.failures == {1: "no luck"}
    assert np.isnan(raised.value.margins).tolist() == [False, True, False]


def test_copies_carry_the_setting(in_pieces: Reranker) -> None:
    assert in_pieces.settings.pieces == Pieces(TOKENS, 8, 64)
    assert Reranker.from_settings(in_pieces.settings).settings == in_pieces.settings
