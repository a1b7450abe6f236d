"""vLLM's scores of pairs: `POST /v1/score`."""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...config import RankingOptions
from ...types import Request
from ..errors import ApiError
from ..fields import EXAMPLE_DOCUMENTS, EXAMPLE_QUERY, Query, ScoreThreshold, TaskFields, TokenUsage, present
from ..shapes import Exchange, Shape

Texts = Annotated[str | list[str], Field(description="One text, or several.")]
Queries = Annotated[Query | list[Query], Field(description="One query, or as many as documents.")]
#: (queries, documents)
Pair = tuple[str | list[str], str | list[str]]


class _ScoreRequest(TaskFields):
    encoding_format: Literal["float"] | None = Field(default=None, description='Only "float".')
    score_threshold: ScoreThreshold = None

    @property
    def pair(self) -> Pair:
        raise NotImplementedError


class TextScoreRequest(_ScoreRequest):
    """`text_1` (queries) and `text_2` (documents)."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"text_1": EXAMPLE_QUERY, "text_2": EXAMPLE_DOCUMENTS}]})

    text_1: Queries
    text_2: Texts

    @property
    def pair(self) -> Pair:
        """(queries, documents)."""
        return self.text_1, self.text_2


class QueryScoreRequest(_ScoreRequest):
    """`queries` and `documents`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"queries": EXAMPLE_QUERY, "documents": EXAMPLE_DOCUMENTS}]}
    )

    queries: Queries
    documents: Texts

    @property
    def pair(self) -> Pair:
        """(queries, documents)."""
        return self.queries, self.documents


class ScoreItem(BaseModel):
    """The score of a pair."""

    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreResponse(BaseModel):
    """The scores, in the order of the request."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ScoreItem]
    usage: TokenUsage


async def _respond(exchange: Exchange, body: _ScoreRequest) -> dict[str, Any]:
    requests, places = _requests(body)
    rankings = await exchange.rank_all(requests, RankingOptions(score_threshold=body.score_threshold))
    margins = body.use_activation is False
    scores = [{hit.index: hit.margin if margins else hit.score for hit in each.result} for each in rankings]
    return present(
        id=f"score-{uuid.uuid4().hex}",
        object="list",
        created=int(time.time()),
        model=exchange.model,
        data=[
            present(index=index, object="score", score=scores[group][place])
            for index, (group, place) in enumerate(places)
            if place in scores[group]  # scores below the threshold are missing
        ],
        usage=TokenUsage.of(each.result.usage for each in rankings),
    )


def _requests(body: _ScoreRequest) -> tuple[list[Request], list[tuple[int, int]]]:
    """Group pairs by query, so that pairs of the same query share its prefix.

    Returns:
        A request for each query; and for each pair the number of its request and its position there.

    Raises:
        ApiError: neither one query nor as many queries as documents.
    """
    first, second = body.pair
    queries = [first] if isinstance(first, str) else first
    documents = [second] if isinstance(second, str) else second
    if len(queries) == 1:
        queries = queries * len(documents)
    if len(queries) != len(documents):
        raise ApiError(
            422,
            "invalid_request",
            f"{len(queries)} queries and {len(documents)} documents: give one query, or as many as documents",
        )
    grouped: dict[str, list[str]] = {}
    numbers: dict[str, int] = {}
    places: list[tuple[int, int]] = []
    for query, document in zip(queries, documents, strict=True):
        group = grouped.setdefault(query, [])
        places.append((numbers.setdefault(query, len(numbers)), len(group)))
        group.append(document)
    limit = body.document_limit
    return [Request(query, group, body.instruction, limit) for query, group in grouped.items()], places


_PATHS = ("/v1/score", "/score")

SHAPES = [
    Shape("vLLM, text_1 and text_2", TextScoreRequest, ScoreResponse, dict.fromkeys(_PATHS), _respond),
    Shape(
        "vLLM, queries and documents",
        QueryScoreRequest,
        ScoreResponse,
        dict.fromkeys(_PATHS, frozenset({"queries", "documents"})),
        _respond,
    ),
]
