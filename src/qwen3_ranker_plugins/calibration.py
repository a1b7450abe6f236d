"""A calibration: margins -> probabilities that agree with labels. It changes scores, but not their order.

`qwen3-ranker bench threshold --calibrate` fits one and writes it as a JSON file; `calibration=FILE` applies it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidInputError

KIND = "qwen3-ranker calibration"
#: Version of the file format, raised when a file of an earlier version could be misread.
FORMAT = 1
METHODS = ("temperature", "platt")
_FIELDS = {"kind", "format", "method", "slope", "intercept", "fitted_on"}

#: Parts of `Calibration.fitted_on` that determine the meaning of a margin -> their names in error messages.
_DECIDING = {
    "model": "another model",
    "adapter": "another adapter",
    "scoring": "another scoring",
    "template": "another template",
    "instruction": "another instruction",
    "pieces": "another way to judge long documents",
}


@dataclass(frozen=True)
class Calibration:
    """P(yes) = sigmoid(slope * margin + intercept).

    Temperature scaling (Guo et al. 2017, https://arxiv.org/abs/1706.04599) has slope 1 / T and intercept 0; Platt
    scaling (Platt 1999) fits both. The slope is positive, so that a larger margin never gets a smaller score.

    Attributes:
        method: a name from METHODS.
        slope: positive.
        intercept: 0 for temperature scaling.
        fitted_on: "model", "adapter", "scoring", "template", "instruction" and "pieces" as in
            `models.judgement_facts`, and a description of the labelled data. It is shown to people, and another model
            is refused by it.

    Raises:
        InvalidInputError: the method is unknown, or a number is invalid.
    """

    method: str
    slope: float
    intercept: float
    fitted_on: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InvalidInputError("calibration.method", self.method, f"use one of {', '.join(METHODS)}")
        for name, value in (("slope", self.slope), ("intercept", self.intercept)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise InvalidInputError(f"calibration.{name}", value, "needs a finite number")
        if self.slope <= 0:
            raise InvalidInputError(
                "calibration.slope", self.slope, "needs a positive number, since others would change the order"
            )
        if self.method == "temperature" and self.intercept != 0:
            raise InvalidInputError("calibration.intercept", self.intercept, "needs 0 for the method temperature")

    @property
    def summary(self) -> str:
        """One line for people."""
        if self.method == "temperature":
            return f"temperature {1 / self.slope:.4g}"
        return f"platt, slope {self.slope:.4g}, intercept {self.intercept:.4g}"

    def apply(self, margins: NDArray[np.floating]) -> NDArray[np.float64]:
        """The calibrated log-odds of margins, of the same shape; their sigmoid is the calibrated score."""
        return margins.astype(np.float64) * self.slope + self.intercept

    def check_judgement(self, facts: Mapping[str, str], path: str) -> None:
        """Refuse a calibration that was fitted on margins with another meaning.

        Args:
            facts: facts of the reranker, see `models.judgement_facts`.
            path: path of the file, for the error message.

        Raises:
            InvalidInputError: the facts differ; the message names the first difference.
        """
        for name, what in _DECIDING.items():
            fitted, now = self.fitted_on.get(name), facts[name]
            if fitted != now:
                raise InvalidInputError(
                    "calibration",
                    path,
                    f"was fitted with {what} ({_short(fitted)}, and this reranker has {_short(now)}), whose margins "
                    "mean something else: fit one for this reranker with qwen3-ranker bench threshold --calibrate, or "
                    "leave it out",
                )

    @property
    def text(self) -> str:
        """The content of a file."""
        fields = {
            "kind": KIND,
            "format": FORMAT,
            "method": self.method,
            "slope": self.slope,
            "intercept": self.intercept,
            "fitted_on": dict(self.fitted_on),
        }
        return json.dumps(fields, ensure_ascii=False, allow_nan=False, indent=2) + "\n"

    def write(self, path: Path) -> None:
        """Write a file for `read`.

        Raises:
            InvalidInputError: the file cannot be written there.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.text, encoding="utf-8")
        except OSError as error:
            raise InvalidInputError("calibration", str(path), f"{error.strerror}; give a path to write to") from error

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Calibration:
        """The calibration of a file.

        Raises:
            InvalidInputError: the file cannot be read, or is not a calibration.
        """
        name = os.fspath(path)
        remedy = "give a file that qwen3-ranker bench threshold --calibrate has written"
        try:
            value = json.loads(Path(name).expanduser().read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidInputError("calibration", name, f"{error.strerror}; {remedy}") from error
        except (ValueError, RecursionError) as error:
            raise InvalidInputError("calibration", name, f"is not JSON ({error}); {remedy}") from error
        if not isinstance(value, dict) or value.get("kind") != KIND:
            raise InvalidInputError("calibration", name, f"is not a calibration; {remedy}")
        if value.get("format") != FORMAT:
            raise InvalidInputError(
                "calibration", name, f"has format {value.get('format')!r}, this version reads {FORMAT}: fit it again"
            )
        if set(value) != _FIELDS or not isinstance(value["fitted_on"], dict):
            raise InvalidInputError("calibration", name, f"is damaged: needs the fields {', '.join(sorted(_FIELDS))}")
        try:
            return cls(value["method"], value["slope"], value["intercept"], value["fitted_on"])
        except InvalidInputError as error:
            raise InvalidInputError("calibration", name, f"is damaged: {error}") from error


def log_odds_line(calibration: Calibration | None) -> tuple[float, float]:
    """(slope, intercept) of margin -> log-odds of P(yes); (1, 0) without a calibration."""
    return (1.0, 0.0) if calibration is None else (calibration.slope, calibration.intercept)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
