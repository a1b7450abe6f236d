"""The shape of text-embeddings-inference (TEI): `POST /rerank` with `texts`, and `GET /info`."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from ..._version import __version__
from ...config import RankingOptions
from ...types import Request as RankRequest
from ..fields import EXAMPLE_DOCUMENTS, EXAMPLE_QUERY, Count, Model, Query, ScoreThreshold, WireRequest, present
from ..shapes import Exchange, Shape
from ..state import state_of


class TeiRequest(WireRequest):
    """A query and its `texts`, as text-embeddings-inference takes them."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"query": EXAMPLE_QUERY, "texts": EXAMPLE_DOCUMENTS, "top_n": 1}]}
    )

    query: Query
    texts: list[str]
    model: Model = None
    top_n: Count | None = Field(default=None, description="LiteLLM's. At most this many results. 0 or null: all.")
    score_threshold: ScoreThreshold = None
    raw_scores: bool | None = Field(
        default=None, description="True: scores are logit(yes) - logit(no) instead of P(yes)."
    )
    return_text: bool | None = Field(default=None, description="Whether each result holds its text.")
    truncate: bool | None = Field(
        default=None, description="False: a text that does not fit is an error (413). Otherwise its end is cut."
    )
    truncation_direction: Literal["Right", "right"] | None = Field(
        default=None, description="Only right: texts are cut at their end."
    )


class TeiRank(BaseModel):
    """A result; the answer is a list of them, best first."""

    index: int
    score: float
    text: str | None = None


async def _respond(exchange: Exchange, body: TeiRequest) -> list[dict[str, Any]]:
    ranked = await exchange.rank(
        RankRequest(body.query, body.texts),
        RankingOptions(body.top_n or None, body.score_threshold),
        may_cut=body.truncate is not False,
    )
    return [
        present(
            index=hit.index,
            score=hit.margin if body.raw_scores else hit.score,
            text=hit.document if body.return_text else None,
        )
        for hit in ranked.result
    ]


SHAPES = [Shape("TEI", TeiRequest, list[TeiRank], {"/rerank": frozenset({"texts"})}, _respond)]


class Labels(BaseModel):
    """The labels of a reranker, which has only one."""

    id2label: dict[str, str] = {"0": "LABEL_0"}
    label2id: dict[str, int] = {"LABEL_0": 0}


class ModelType(BaseModel):
    """How clients of TEI recognize a reranker."""

    reranker: Labels = Labels()


class TeiInfo(BaseModel):
    """The model and the limits of a request."""

    model_id: str
    model_sha: str | None = None
    model_dtype: str
    model_type: ModelType = ModelType()
    max_concurrent_requests: int = Field(description="Maximum number of open connections.")
    max_input_length: int = Field(description="Maximum number of tokens in a prompt.")
    max_batch_tokens: int = Field(description="Maximum number of tokens in a request.")
    max_batch_requests: int | None = None
    max_client_batch_size: int = Field(description="Maximum number of documents in a request.")
    auto_truncate: Literal[True] = True
    version: str


router = APIRouter()


@router.get("/info")
async def info(request: Request) -> TeiInfo:
    """The served model, in the form of text-embeddings-inference; Dify asks for it first."""
    settings = state_of(request).settings
    return TeiInfo(
        model_id=settings.model,
        model_dtype=settings.dtype,
        max_concurrent_requests=settings.max_connections,
        max_input_length=settings.max_length,
        max_batch_tokens=settings.max_request_tokens,
        max_client_batch_size=settings.max_documents,
        version=__version__,
    )
