"""An explanation says what the model read, and what each sentence adds, as separate calls would show it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

import pytest

from qwen3_ranker_plugins import InvalidInputError, Request, Reranker
from qwen3_ranker_plugins.prompt import Template, load_tokenizer

QUERY = "how is a file closed after an error?"
ANSWER = "The with statement closes the file even if the block raises an exception. "
FILLER = "A tuple is an immutable sequence of values. Dictionaries map keys to values! "
DOCUMENTS = ["A list holds items.", FILLER + ANSWER + FILLER.rstrip(), "", "关闭文件。异常发生时也会关闭！", "🙂" * 5]


@pytest.fixture(scope="module")
def short() -> Iterator[Reranker]:
    """Its prompts have room for some thirty tokens of a document."""
    with Reranker("bundled:tiny", max_length=120) as reranker:
        yield reranker


def test_the_ranking_is_the_same(reranker: Reranker) -> None:
    plain, explained = reranker.rerank(QUERY, DOCUMENTS, 3), reranker.rerank(QUERY, DOCUMENTS, 3, explain=True)
    assert [(hit.index, hit.margin) for hit in plain] == [(hit.index, hit.margin) for hit in explained]
    assert all(hit.explanation is None for hit in plain)
    assert explained.usage.computed_tokens == plain.usage.computed_tokens
    for rank, hit in enumerate(explained, start=1):
        explanation = hit.explanation
        assert explanation is not None
        assert (explanation.rank, explanation.rank_before) == (rank, hit.index + 1)
        assert explanation.judged == (0, len(hit.document))
        assert explanation.sentences is None


def test_the_prompt_is_what_the_model_reads(reranker: Reranker) -> None:
    tokenizer = load_tokenizer(reranker.model_path)
    template = Template.named("standard")
    for hit in reranker.rerank(QUERY, DOCUMENTS, explain=True):
        assert hit.explanation is not None
        prompt = hit.explanation.prompt
        assert prompt is not None
        instruction = "Given a web search query, retrieve relevant passages that answer the query"
        fields = {"instruction": instruction, "query": QUERY}
        assert prompt == template.render_prefix(fields) + hit.document + "".join(template.suffix)
        pieces = tokenizer.split_control(prompt)
        counted = sum(1 if isinstance(piece, int) else len(tokenizer.encode(piece)) for piece in pieces)
        assert hit.explanation.prompt_tokens == counted


@pytest.mark.parametrize("asynchronous", [False, True])
def test_contributions_are_those_of_calls_without_each_sentence(reranker: Reranker, asynchronous: bool) -> None:
    if asynchronous:
        result = asyncio.run(reranker.arerank(QUERY, DOCUMENTS, explain="sentences"))
    else:
        result = reranker.rerank(QUERY, DOCUMENTS, explain="sentences")
    counts = {}
    for hit in result:
        assert hit.explanation is not None
        sentences = hit.explanation.sentences
        assert sentences is not None
        counts[hit.index] = len(sentences)
        assert "".join(hit.document[each.start : each.end] for each in sentences) == hit.document
        for each in sentences:
            without = reranker.rerank(QUERY, [hit.document[: each.start] + hit.document[each.end :]])[0].margin
            assert math.isclose(each.margin, without, abs_tol=2e-5)
            assert math.isclose(each.contribution, hit.margin - without, abs_tol=4e-5)
    assert counts == {0: 1, 1: 5, 2: 1, 3: 2, 4: 1}
    best = next(hit for hit in result if hit.index == 1)
    assert best.explanation is not None
    strongest = max(best.explanation.sentences or (), key=lambda each: each.contribution)
    assert best.document[strongest.start : strongest.end] == ANSWER
    assert result.usage.computed_tokens > reranker.rerank(QUERY, DOCUMENTS).usage.computed_tokens


def test_several_requests_are_explained_together(reranker: Reranker) -> None:
    """Each result as in a call of its own; the requests without sentences share passes."""
    requests = [Request(QUERY, DOCUMENTS), Request("what is a list?", []), Request("what is a list?", DOCUMENTS[:2])]
    for explain in (True, "sentences"):
        before = sum(each.passes for each in reranker.replicas())
        results = reranker.rerank_many(requests, top_k=3, explain=explain)  # type: ignore[arg-type]
        assert sum(each.passes for each in reranker.replicas()) - before <= (2 if explain is True else 4)
        for request, result in zip(requests, results, strict=True):
            alone = reranker.rerank(request.query, request.documents, 3, explain=explain)  # type: ignore[arg-type]
            assert [hit.index for hit in result] == [hit.index for hit in alone]
            for hit, expected in zip(result, alone, strict=True):
                one, other = hit.explanation, expected.explanation
                assert one is not None
                assert other is not None
                assert (one.prompt, one.judged, one.rank) == (other.prompt, other.judged, other.rank)
                contributions = [[each.contribution for each in why.sentences or ()] for why in (one, other)]
                assert contributions[0] == pytest.approx(contributions[1], abs=4e-5)
                assert bool(contributions[0]) == (explain == "sentences")
    assert all(hit.explanation is None for hit in reranker.rerank_many(requests)[0])
    with pytest.raises(InvalidInputError, match="explain='words'"):
        reranker.rerank_many(requests, explain="words")  # type: ignore[arg-type]


def test_what_was_cut_is_no_part_of_it(short: Reranker) -> None:
    document = ANSWER + FILLER * 5
    hit = short.rerank(QUERY, [document], explain="sentences")[0]
    assert hit.truncated_tokens > 0
    assert hit.explanation is not None
    start, end = hit.explanation.judged
    assert start == 0
    assert 0 < end < len(document)
    assert hit.explanation.prompt_tokens == 120
    assert f"<Document>: {document[:end]}<|im_end|>" in (hit.explanation.prompt or "")
    assert math.isclose(short.rerank(QUERY, [document[:end]])[0].margin, hit.margin, abs_tol=2e-5)
    sentences = hit.explanation.sentences or ()
    assert sentences[-1].end == end
    for each in sentences:
        without = short.rerank(QUERY, [document[: each.start] + document[each.end : end]])[0].margin
        assert math.isclose(each.contribution, hit.margin - without, abs_tol=4e-5)


def test_of_a_document_in_pieces_the_best_one_is_explained() -> None:
    document = FILLER * 4 + ANSWER + FILLER * 4
    with Reranker("bundled:tiny", long_documents="pieces", piece_tokens=48, piece_overlap=8) as reranker:
        hit = reranker.rerank(QUERY, [document], explain="sentences")[0]
        assert hit.explanation is not None
        assert hit.explanation.judged == hit.piece
        start, end = hit.explanation.judged
        assert f"<Document>: {document[start:end]}<|im_end|>" in (hit.explanation.prompt or "")
        sentences = hit.explanation.sentences or ()
        assert (sentences[0].start, sentences[-1].end) == (start, end)
        strongest = max(sentences, key=lambda each: each.contribution)
        assert "with statement" in document[strongest.start : strongest.end]


def test_many_sentences_are_left_out_in_groups(reranker: Reranker) -> None:
    document = "A list. " * 200
    hit = reranker.rerank(QUERY, [document], explain="sentences")[0]
    assert hit.explanation is not None
    sentences = hit.explanation.sentences or ()
    assert len(sentences) == 64
    assert "".join(document[each.start : each.end] for each in sentences) == document


def test_nothing_to_explain(reranker: Reranker) -> None:
    assert len(reranker.rerank(QUERY, [], explain="sentences")) == 0
    assert len(reranker.rerank(QUERY, ["A list."], score_threshold=1, explain="sentences")) == 0
    with pytest.raises(InvalidInputError, match="explain='words'"):
        reranker.rerank(QUERY, ["A list."], explain="words")  # type: ignore[arg-type]
