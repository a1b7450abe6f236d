"""The tree in the docstring is the tree in the code, and errors survive a process boundary."""

from __future__ import annotations

import pickle
import re

import numpy as np

from qwen3_ranker_plugins import InvalidInputError, RankerError, RemoteError, ScoringError, errors


def test_docstring_draws_the_tree() -> None:
    drawn = re.findall(r"(\w+Error)\b(?: \(also (\w+)\))?", errors.__doc__ or "")
    defined = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert {name for name, _ in drawn} - {"ValueError", "ImportError"} == set(defined) - {"Mapping"}
    for name, also in drawn:
        if also:
            assert issubclass(defined[name], {"ValueError": ValueError, "ImportError": ImportError}[also])
    assert all(issubclass(kind, RankerError) for name, kind in defined.items() if name != "Mapping")


def test_errors_can_be_pickled() -> None:
    invalid = pickle.loads(pickle.dumps(InvalidInputError("top_k", 0, "be positive")))  # noqa: S301 - our own bytes
    assert str(invalid) == "top_k=0: be positive"
    failed = ScoringError({1: "its margin is nan"}, np.array([0.5, np.nan], dtype=np.float32))
    copy = pickle.loads(pickle.dumps(failed))  # noqa: S301 - our own bytes
    assert copy.failures == {1: "its margin is nan"}
    assert str(copy) == str(failed)
    refused = pickle.loads(pickle.dumps(RemoteError("http://gpu answered 503", 503)))  # noqa: S301 - our own bytes
    assert (str(refused), refused.status) == ("http://gpu answered 503", 503)


def test_long_values_are_shortened() -> None:
    assert len(str(InvalidInputError("query", "x" * 10_000, "shorten it"))) < 120


def test_both_ends_of_a_long_value_are_shown() -> None:
    """Paths differ at their end."""
    shown = str(InvalidInputError("INPUT", f"FILE=/{'folder/' * 40}last.jsonl", "give another"))
    assert shown.startswith("INPUT='FILE=/folder/")
    assert "/folder/last.jsonl': give another" in shown
