"""The score head of a sequence classifier: how many labels it has, and from which label rows it was made."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import UnsupportedModelError
from .families import FAMILIES, Family
from .spec import Scoring
from .weights import read_rows

# Minimum cosine similarity of a score head and the label rows from which it was made.
_SIMILAR = 0.5


def family_of_head(folder: Path) -> Family | None:
    """The family whose label rows make up the score head of a classifier with tied embeddings.

    Training moves a head away from the rows, so the family with the most similar rows is taken. A head that was not
    made from rows has a cosine similarity of about 0 with all of them.

    Raises:
        UnsupportedModelError: the head is made of label rows with the opposite sign.
    """
    from ..prompt.tokenizer import load_tokenizer

    head = read_rows(folder, "score.weight", [0])
    if head is None:
        return None
    tokenizer = load_tokenizer(folder)
    closest, similarity = None, 0.0
    for family in FAMILIES:
        ids = [tokenizer.find(word) for word in (family.positive, family.negative) if word is not None]
        if None in ids:
            continue
        rows = read_rows(folder, "model.embed_tokens.weight", [each for each in ids if each is not None])
        if rows is None:
            return None
        row = rows[0] if len(rows) == 1 else rows[0] - rows[1]
        cosine = float(row @ head[0]) / max(float(np.linalg.norm(row) * np.linalg.norm(head[0])), 1e-30)
        if abs(cosine) > abs(similarity):
            closest, similarity = family, cosine
    if similarity < -_SIMILAR:
        assert closest is not None  # noqa: S101 - it has the similarity
        raise UnsupportedModelError(
            f"{folder}: its score head has the opposite sign of {str(Scoring(closest.positive, closest.negative))!r}, "
            "so irrelevant documents would come first: convert it again with the rows in the other order"
        )
    return closest if similarity > _SIMILAR else None


def check_one_label(folder: Path) -> None:
    """Make sure that the score head has one row.

    The number of labels in config.json does not count: converters leave `num_labels` and `id2label` as they were.

    Raises:
        UnsupportedModelError: there is no score head, or it has several rows.
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
