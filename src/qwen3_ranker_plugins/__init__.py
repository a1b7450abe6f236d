"""Rerank retrieved documents with P(yes) of a Qwen3 reranker.

    >>> from qwen3_ranker_plugins import Reranker
    >>> with Reranker("bundled:tiny") as reranker:
    ...     for hit in reranker.rerank("how do I close a file?", ["The with statement ...", "A list ..."]):
    ...         print(hit.index, hit.score)

Importing this module loads no torch, vllm or web framework.
"""

from ._version import __version__
from .errors import (
    EngineClosedError,
    EngineError,
    InvalidInputError,
    MissingDependencyError,
    ModelError,
    ModelNotFoundError,
    PromptTooLongError,
    RankerError,
    RemoteError,
    ScoringError,
    UnsupportedModelError,
)
from .prompt import DEFAULT_INSTRUCTION, TEMPLATES
from .reranker import Reranker
from .types import Explanation, Pieces, Request, RerankResult, ScoredDocument, Sentence, Usage

__all__ = [
    "DEFAULT_INSTRUCTION",
    "TEMPLATES",
    "EngineClosedError",
    "EngineError",
    "Explanation",
    "InvalidInputError",
    "MissingDependencyError",
    "ModelError",
    "ModelNotFoundError",
    "Pieces",
    "PromptTooLongError",
    "RankerError",
    "RemoteError",
    "Request",
    "RerankResult",
    "Reranker",
    "ScoredDocument",
    "ScoringError",
    "Sentence",
    "UnsupportedModelError",
    "Usage",
    "__version__",
]
