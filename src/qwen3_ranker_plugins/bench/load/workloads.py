"""Workloads: what the requests of a load test consist of, and texts of these sizes."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from ...errors import InvalidInputError
from ..titles import generate_titles

#: Each of these words, with a space before it, is one token of Qwen3, so that no tokenizer is needed to count tokens.
WORDS = (
    "object class value function method list string name module instance argument sequence type number key pattern "
    "version tuple default format keyword item character block line call result section command subject order frame "
    "form variable standard element part range length target syntax support execution end context index literal bound "
    "step level program scope width future copy way body field option count access data loop time source rule user "
    "file space comma table search place control state event water house river school market history letter music "
    "science country company family garden window summer winter morning evening animal bridge camera coffee doctor "
    "engine forest hotel island kitchen language machine mountain newspaper office paper picture question restaurant "
    "season station street student teacher train travel village weather "
    "small large early late fast slow public private common simple complex strong light dark open closed free new old "
    "true first last next other same different important possible available general special local recent final "
    "find keep move read write build change follow include provide return start stop use work show hold bring make"
).split()
#: Tokens of a query if a workload does not say.
_SHORT_QUERY = 8
#: Mean tokens of a chunk, and of a title (for orientation only; titles have the lengths of real ones).
_CHUNK_TOKENS = 260
_TITLE_TOKENS = 27
#: Items have between 0.8 and 1.2 times the tokens that a workload names.
_SPREAD = 0.2
#: Number of document lists that requests use in turn; fewer if they would take more than the following bytes.
_LISTS = 16
_LIST_BYTES = 32 * 2**20


@dataclass(frozen=True)
class RequestShape:
    """One kind of request.

    Attributes:
        name: name of the workload with only this shape.
        query_tokens: number of tokens of the query.
        item_tokens: mean number of tokens of a document.
        items: number of documents in a request.
        titles: whether documents are product titles instead of random words.
    """

    name: str
    query_tokens: int
    item_tokens: int
    items: int
    titles: bool = False


@dataclass(frozen=True)
class Workload:
    """A mixture of requests.

    Attributes:
        name: the name under which it was requested.
        shapes: the kinds of requests.
        weights: relative frequency of each kind.
    """

    name: str
    shapes: tuple[RequestShape, ...]
    weights: tuple[float, ...] = (1.0,)

    @property
    def items(self) -> float:
        """Mean number of documents in a request."""
        total = sum(self.weights)
        return sum(shape.items * weight for shape, weight in zip(self.shapes, self.weights, strict=True)) / total

    @classmethod
    def named(cls, name: str) -> Self:
        """`120+180x10` (tokens of the query, tokens of an item, items), `100-chunks`, `1000-titles`, or `mix`.

        Raises:
            InvalidInputError: the name is none of these.
        """
        if name == "mix":
            parts = {"120+180x10": 0.85, "100-chunks": 0.10, "1000-titles": 0.05}
            return cls(name, tuple(map(_shape, parts)), tuple(parts.values()))
        return cls(name, (_shape(name),))


def _shape(name: str) -> RequestShape:
    if found := re.fullmatch(r"(\d+)\+(\d+)x(\d+)", name):
        query, item, items = map(int, found.groups())
    elif found := re.fullmatch(r"(\d+)-(chunks|titles)", name):
        query, item, items = _SHORT_QUERY, _CHUNK_TOKENS if found[2] == "chunks" else _TITLE_TOKENS, int(found[1])
    else:
        query = item = items = 0
    if not (query and item and items):
        raise InvalidInputError(
            "workload",
            name,
            "use QUERY+ITEMxCOUNT such as 120+180x10 (tokens of a query, tokens of an item, items), "
            "COUNT-chunks, COUNT-titles, or mix",
        )
    return RequestShape(name, query, item, items, titles=name.endswith("-titles"))


def document_lists(shape: RequestShape, seed: int) -> Sequence[list[str]]:
    """Lists of documents of a shape, which requests use in turn; the same for the same arguments."""
    rng = random.Random(f"{seed} {shape}")  # noqa: S311 - nothing secret
    if shape.titles:
        titles = generate_titles(2 * shape.items, language="both", seed=seed)
        return [rng.sample(titles, shape.items) for _ in range(_LISTS)]
    lists = max(2, min(_LISTS, _LIST_BYTES // (6 * shape.items * shape.item_tokens)))
    return [[_words(rng, _spread(rng, shape.item_tokens)) for _ in range(shape.items)] for _ in range(lists)]


def fresh_query(shape: RequestShape, rng: random.Random) -> str:
    """A query that almost certainly no other request has, so that nothing computed for one request helps another."""
    return _words(rng, shape.query_tokens)


def _spread(rng: random.Random, tokens: int) -> int:
    return max(1, round(rng.uniform(1 - _SPREAD, 1 + _SPREAD) * tokens))


def _words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(WORDS, k=count))
