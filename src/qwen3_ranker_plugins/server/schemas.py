"""Shapes on the wire. Unknown fields are refused, since they might have been meant to change the ranking.

Fields marked "no effect" are sent by clients of other services and change nothing about a ranking here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, JsonValue, Tag

_NO_EFFECT = "Accepted for clients of other services; no effect."

#: Something that Python's `str.strip` leaves. `\S` would not do: in OpenAPI's dialect U+001C is no space.
NOT_BLANK = r"[^\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[int, Field(ge=1, le=2**53)]
Query = Annotated[
    str,
    Field(
        min_length=1,
        json_schema_extra={"pattern": NOT_BLANK},
        description="What the documents are judged for; not blank.",
    ),
]
Instruction = Annotated[
    Annotated[str, Field(min_length=1, json_schema_extra={"pattern": NOT_BLANK})] | None,
    Field(description="The task, as in the model's prompt; not blank. Null: as configured."),
]

_QUERY = "how do I close a file?"
_DOCUMENTS: list[JsonValue] = ["The with statement closes the file at its end.", "Bread needs yeast."]


class _Request(BaseModel):
    # Strict: the text "3" is no number, and 1 is no true.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


class DocumentObject(BaseModel):
    """A document as an object. `text` is judged; other fields come back with it and are not judged."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    text: str


class SeedRequest(_Request):
    """`POST /rerank`, the plain shape."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": _QUERY, "documents": _DOCUMENTS, "top_k": 2}]})

    query: Query
    documents: list[str | DocumentObject]
    instruction: Instruction = None
    top_k: Positive = Field(default=10, description="At most this many documents in the answer.")
    min_confidence: Probability | None = Field(
        default=None,
        description="Only documents with |P(yes) - P(no)| of at least this. A confident no passes: to drop what is "
        "irrelevant, use score_threshold.",
    )
    score_threshold: Probability | None = Field(
        default=None, description="Only documents with P(yes) of at least this."
    )


class _RerankFields(_Request):
    """What the Cohere, Jina and vLLM shapes share, `model` apart."""

    query: Query
    documents: list[str | DocumentObject]
    top_n: Positive | None = Field(default=None, description="At most this many results. Null: all.")
    return_documents: bool | None = Field(default=None, description="Whether results hold their document. Null: no.")
    max_tokens_per_doc: Positive | None = Field(
        default=None, description="Documents are cut to so many tokens. Null: only to what fits the model."
    )
    instruction: Instruction = None
    use_activation: bool | None = Field(
        default=None, description="vLLM's. False: relevance_score is logit(yes) - logit(no) in place of P(yes)."
    )
    rank_fields: list[Literal["text"]] | None = Field(
        default=None, description='Cohere\'s. Only ["text"], which is what is judged anyway.'
    )
    truncate_prompt_tokens: Literal[-1] | None = Field(
        default=None, description="vLLM's. Only -1, the model's limit; to cut documents, use max_tokens_per_doc."
    )
    truncation_side: Literal["right"] | None = Field(
        default=None, description="vLLM's. Documents are cut at their end."
    )
    max_tokens_per_query: Literal[0] | None = Field(default=None, description="vLLM's. Only 0: a query is never cut.")
    max_chunks_per_doc: Positive | None = Field(
        default=None, description="Cohere's. No effect: a document is read as one piece."
    )
    return_embeddings: Literal[False] | None = Field(default=None, description="Jina's. Only false.")
    user: str | None = Field(default=None, description=_NO_EFFECT)
    priority: int | None = Field(default=None, description=_NO_EFFECT)
    request_id: str | None = Field(default=None, description=_NO_EFFECT + " Send X-Request-ID instead.")
    cache_salt: str | None = Field(default=None, description=_NO_EFFECT)


class RerankRequest(_RerankFields):
    """`POST /v1/rerank` and `/v2/rerank`: the shape of Cohere, Jina and vLLM."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": _QUERY, "documents": _DOCUMENTS, "top_n": 1}]})

    model: str | None = Field(default=None, description="A served name, see /v1/models. Null: the one that is served.")


class TeiRequest(_Request):
    """`POST /rerank` as text-embeddings-inference takes it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": _QUERY, "texts": _DOCUMENTS}]})

    query: Query
    texts: list[str]
    raw_scores: bool | None = Field(default=None, description="logit(yes) - logit(no) in place of P(yes).")
    return_text: bool | None = Field(default=None, description="Whether results hold their text.")
    truncate: bool | None = Field(
        default=None, description="False: a text that does not fit is an error (413). Otherwise it is cut at its end."
    )
    truncation_direction: Literal["Right", "right"] | None = Field(
        default=None, description="Texts are cut at their end."
    )


_RERANK_MARKS = frozenset(RerankRequest.model_fields) - frozenset(SeedRequest.model_fields)


def _shape(body: Any) -> str:
    """Which of three shapes a body of /rerank has: its field names tell."""
    names = body.keys() if isinstance(body, Mapping) else ()
    if "texts" in names:
        return "tei"
    return "rerank" if any(name in _RERANK_MARKS for name in names) else "seed"


AnyRerankRequest = Annotated[
    Annotated[SeedRequest, Tag("seed")] | Annotated[TeiRequest, Tag("tei")] | Annotated[RerankRequest, Tag("rerank")],
    Discriminator(_shape),
]

Texts = Annotated[str | list[str], Field(description="One text, or several.")]
Queries = Annotated[Query | list[Query], Field(description="One query, or as many as documents.")]


class _ScoreFields(_Request):
    model: str | None = Field(default=None, description="A served name, see /v1/models. Null: the one that is served.")
    instruction: Instruction = None
    max_tokens_per_doc: Annotated[int, Field(ge=0, le=2**53)] | None = Field(
        default=None, description="Documents are cut to so many tokens. 0 or null: only to what fits the model."
    )
    use_activation: bool | None = Field(default=None, description="False: logit(yes) - logit(no) in place of P(yes).")
    truncate_prompt_tokens: Literal[-1] | None = Field(
        default=None, description="Only -1, the model's limit; to cut documents, use max_tokens_per_doc."
    )
    truncation_side: Literal["right"] | None = Field(default=None, description="Documents are cut at their end.")
    max_tokens_per_query: Literal[0] | None = Field(default=None, description="Only 0: a query is never cut.")
    user: str | None = Field(default=None, description=_NO_EFFECT)
    priority: int | None = Field(default=None, description=_NO_EFFECT)
    request_id: str | None = Field(default=None, description=_NO_EFFECT + " Send X-Request-ID instead.")
    cache_salt: str | None = Field(default=None, description=_NO_EFFECT)
    encoding_format: Literal["float"] | None = Field(default=None, description='Only "float".')


class TextScoreRequest(_ScoreFields):
    """`POST /v1/score` with `text_1` (queries) and `text_2` (documents)."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"text_1": _QUERY, "text_2": _DOCUMENTS}]})

    text_1: Queries
    text_2: Texts

    @property
    def pair(self) -> tuple[str | list[str], str | list[str]]:
        """(queries, documents)."""
        return self.text_1, self.text_2


class QueryScoreRequest(_ScoreFields):
    """`POST /v1/score` with `queries` and `documents`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"queries": _QUERY, "documents": _DOCUMENTS}]})

    queries: Queries
    documents: Texts

    @property
    def pair(self) -> tuple[str | list[str], str | list[str]]:
        """(queries, documents)."""
        return self.queries, self.documents


def _score_shape(body: Any) -> str:
    names = body.keys() if isinstance(body, Mapping) else ()
    return "queries" if "queries" in names or "documents" in names else "text"


AnyScoreRequest = Annotated[
    Annotated[TextScoreRequest, Tag("text")] | Annotated[QueryScoreRequest, Tag("queries")],
    Discriminator(_score_shape),
]


class RankedDocument(BaseModel):
    """A document with its judgement."""

    document: str
    index: int = Field(description="Position in the request.")
    relevance_score: float = Field(description="P(yes), from 0 to 1.")
    confidence: float = Field(description="|P(yes) - P(no)|: how decided the model is, either way.")
    rank: int = Field(description="From 1.")
    truncated_tokens: int | None = Field(
        default=None, description="Tokens at its end that were not read; missing if it was read whole."
    )


class SeedResponse(BaseModel):
    """Answer of `POST /rerank` in the plain shape, best first."""

    query: str
    ranked_documents: list[RankedDocument]
    total_processed: int = Field(description="Documents of the request.")
    processing_time_ms: float = Field(description="From the end of the request's body to its last score.")


class RerankItem(BaseModel):
    """A result."""

    index: int = Field(description="Position in the request.")
    relevance_score: float
    document: DocumentObject | None = Field(default=None, description="If return_documents.")


class RerankUsage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int = Field(description="Of all prompts, as if each document had been scored on its own.")
    total_tokens: int = Field(description="The same: nothing is generated.")
    computed_tokens: int = Field(description="That went through the model; what documents share is computed once.")


class TruncatedDocument(BaseModel):
    """A document whose end was not read."""

    index: int
    truncated_tokens: int


class ApiVersion(BaseModel):
    """The shape's version."""

    version: str


class BilledUnits(BaseModel):
    """Where Cohere's clients look for it."""

    search_units: int


class TokenCounts(BaseModel):
    """Where Cohere's clients look for them."""

    input_tokens: int


class RerankMeta(BaseModel):
    """What is worth knowing about a ranking."""

    api_version: ApiVersion
    billed_units: BilledUnits
    tokens: TokenCounts
    processing_time_ms: float
    truncated: list[TruncatedDocument] | None = Field(default=None, description="Missing if all were read whole.")
    warnings: list[str] | None = None


class RerankResponse(BaseModel):
    """Answer of `POST /v1/rerank` and `/v2/rerank`, best first."""

    id: str
    model: str
    results: list[RerankItem]
    usage: RerankUsage
    meta: RerankMeta


class TeiRank(BaseModel):
    """A result in the shape of text-embeddings-inference."""

    index: int
    score: float
    text: str | None = None


class ScoreItem(BaseModel):
    """The score of a pair."""

    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreResponse(BaseModel):
    """Answer of `POST /v1/score`, in the order of the request."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ScoreItem]
    usage: RerankUsage


class ModelCard(BaseModel):
    """A served name."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    root: str
    max_model_len: int


class ModelList(BaseModel):
    """Answer of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class QueueState(BaseModel):
    """What is accepted and not answered."""

    requests: int
    documents: int
    tokens: int


class Memory(BaseModel):
    """Bytes in use."""

    process_bytes: int | None = Field(description="Resident memory of the server process.")
    gpu_bytes: list[int] = Field(description="Allocated by torch in this process, per GPU.")


class Health(BaseModel):
    """Answer of `GET /health`."""

    status: Literal["loading", "healthy", "unhealthy", "draining"]
    model_loaded: bool
    model: str
    backend: str = Field(description="The engine; under the name that the seed gave it.")
    engine: str
    engine_facts: dict[str, str]
    engine_error: str | None = Field(description="Why it is unhealthy.")
    instruction_format: str = Field(description="The template.")
    max_model_len: int
    gpu_count: int
    memory: Memory
    memory_usage: float | None = Field(description="Per cent of the machine's memory in use.")
    queue: QueueState
    version: str
    uptime_seconds: float


class Ready(BaseModel):
    """Answer of `GET /ready`."""

    ready: bool
    status: str


class DemoQueries(BaseModel):
    """Answer of `GET /demo`."""

    corpus: str
    queries: dict[str, str]


class DemoCandidate(BaseModel):
    """A passage that BM25 found."""

    document_id: str
    text: str
    grade: int = Field(description="2: answers the question; 1: helps; 0: not judged relevant.")


class DemoCandidates(BaseModel):
    """Answer of `GET /demo/{query_id}`, in BM25's order."""

    query_id: str
    query: str
    candidates: list[DemoCandidate]


class ErrorBody(BaseModel):
    """What went wrong."""

    type: str = Field(description="For programs, such as queue_full.")
    message: str = Field(description="For people; holds no text of the request.")
    request_id: str
    param: str | None = Field(default=None, description="The field that is at fault.")


class ErrorResponse(BaseModel):
    """Every error has this shape."""

    error: ErrorBody
    detail: str = Field(description="The message again, where clients of Jina and vLLM look for it.")
