"""The score head of a sequence classifier: its labels, its bias, and from which label rows it was made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import UnsupportedModelError
from .families import FAMILIES, Family
from .spec import Scoring
from .weights import Headers, read_headers, read_rows

if TYPE_CHECKING:
    from ..prompt.tokenizer import ModelTokenizer

# Minimum cosine similarity of a score head and the label rows from which it was made.
_SIMILAR = 0.5
# Maximum relative difference of a score head's length from that of the label rows from which it was made.
_SAME_LENGTH = 0.03


def family_of_head(folder: Path) -> Family | None:
    """The family whose label rows make up the score head of a classifier with tied embeddings.

    Training moves a head away from the rows, so the family with the most similar rows is taken. A head that was not
    made from rows has a cosine similarity of about 0 with all of them.

    Raises:
        UnsupportedModelError: the head is made of label rows with the opposite sign.
    """
    from ..prompt.tokenizer import load_tokenizer

    headers, tokenizer = read_headers(folder), load_tokenizer(folder)
    head = read_rows(headers, "score.weight", [0])
    if head is None:
        return None
    closest, similarity = None, 0.0
    for family in FAMILIES:
        if (row := _label_row(headers, tokenizer, family)) is None:
            continue
        cosine = _cosine(row, head[0])
        if abs(cosine) > abs(similarity):
            closest, similarity = family, cosine
    if similarity < -_SIMILAR:
        assert closest is not None  # noqa: S101 - it has the similarity
        raise UnsupportedModelError(
            f"{folder}: its score head has the opposite sign of {str(Scoring(closest.positive, closest.negative))!r}, "
            "so irrelevant documents would come first: convert it again with the rows in the other order"
        )
    return closest if similarity > _SIMILAR else None


def divisor_of_head(folder: Path, family: Family) -> float:
    """By what the output of a classifier's score head is still to be divided to become a margin of its family.

    A converter may have divided the weights by the family's divisor already.

    Raises:
        UnsupportedModelError: the length of the score head does not tell.
    """
    from ..prompt.tokenizer import load_tokenizer

    if family.divisor == 1:
        return 1.0
    headers = read_headers(folder)
    head, row = read_rows(headers, "score.weight", [0]), _label_row(headers, load_tokenizer(folder), family)
    found = f"is not made of the row of {family.positive!r}"
    if head is not None and row is not None and _cosine(row, head[0]) > _SIMILAR:
        length = float(np.linalg.norm(head[0]) / np.linalg.norm(row))
        for inside in (1.0, family.divisor):
            if abs(length * inside - 1) <= _SAME_LENGTH:
                return family.divisor / inside
        found = f"has {length:.3g} times the length of the row of {family.positive!r}"
    undivided, divided = (str(Scoring(None, None, each)) for each in (family.divisor, 1.0))
    raise UnsupportedModelError(
        f"{folder}: it is unclear whether its score head is already divided by {family.divisor:g}, by which "
        f"{family.name} divides its logit, because it {found}: give scoring='{divided} / 1' if it is, and "
        f"scoring={undivided!r} if it is not"
    )


def _label_row(headers: Headers, tokenizer: ModelTokenizer, family: Family) -> NDArray[np.float32] | None:
    """The score head that the tied embeddings make of a family's labels; None if they have no rows for these."""
    ids = [tokenizer.find(word) for word in (family.positive, family.negative) if word is not None]
    if None in ids:
        return None
    rows = read_rows(headers, "model.embed_tokens.weight", [each for each in ids if each is not None])
    if rows is None:
        return None
    row: NDArray[np.float32] = rows[0] if len(rows) == 1 else rows[0] - rows[1]
    return row


def _cosine(row: NDArray[np.float32], head: NDArray[np.float32]) -> float:
    return float(row @ head) / max(float(np.linalg.norm(row) * np.linalg.norm(head)), 1e-30)


def check_head(folder: Path) -> None:
    """Make sure that the score head has one row, and that its bias can be read.

    The number of labels in config.json does not count: converters leave `num_labels` and `id2label` as they were.

    Raises:
        UnsupportedModelError: there is no score head, it has several rows, or see `read_bias`.
    """
    head = read_rows(folder, "score.weight", None)
    if head is None:
        raise UnsupportedModelError(
            f"{folder} is a classifier without a readable score.weight: convert it again, or use the causal model that "
            "it was made from"
        )
    if (labels := len(head)) != 1:
        raise UnsupportedModelError(
            f"{folder} is a classifier with {labels} labels and does not say which one means relevance: convert it to "
            "one label, whose weight is the row of 'yes' minus the row of 'no'"
        )
    read_bias(folder)


def read_bias(folder: Path) -> float:
    """The bias of the score head; 0 if it has none.

    Raises:
        UnsupportedModelError: it is not one number in a dtype of weights.
    """
    headers = read_headers(folder)
    if "score.bias" not in headers:
        return 0.0
    path, entry = headers["score.bias"]
    value = read_rows(headers, "score.bias", None)
    if value is None or list(entry["shape"]) != [1]:
        raise UnsupportedModelError(
            f"{path} stores score.bias as {entry['dtype']} {entry['shape']}, which is not the bias of one label (F32, "
            "F16 or BF16, shape [1]): save it in that form, or remove the tensor if it is 0"
        )
    return float(value[0, 0])
