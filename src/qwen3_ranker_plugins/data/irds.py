"""Data sets of ir_datasets, which downloads what this machine lacks."""

from __future__ import annotations

from typing import Any

from ..errors import InvalidInputError, MissingDependencyError

PREFIX = "ir_datasets:"


def load_dataset(dataset_id: str, needs: tuple[str, ...], argument: str) -> Any:
    """The data set object of the library, which is not typed.

    Args:
        dataset_id: without `PREFIX`.
        needs: the parts that it must have, of "docs", "queries" and "qrels".
        argument: name of the argument in error messages.

    Raises:
        MissingDependencyError: ir_datasets is not installed.
        InvalidInputError: there is no such id, or the data set lacks a part.
    """
    try:
        import ir_datasets
    except ImportError as error:
        raise MissingDependencyError(f"{PREFIX}{dataset_id} needs: pip install ir_datasets") from error
    try:
        dataset: Any = ir_datasets.load(dataset_id)
    except KeyError as error:
        raise InvalidInputError(argument, f"{PREFIX}{dataset_id}", "ir_datasets knows no such id") from error
    lacking = [what for what in needs if not getattr(dataset, f"has_{what}")()]
    if lacking:
        named = ["documents" if what == "docs" else what for what in lacking]
        raise InvalidInputError(argument, f"{PREFIX}{dataset_id}", f"has no {', and no '.join(named)}")
    return dataset


def query_texts(dataset: Any) -> dict[str, str]:
    """Id -> text of its queries."""
    return {query.query_id: query.default_text() for query in dataset.queries_iter()}
