"""Settings, checked when they are made. The only module that reads environment variables."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from .checks import (
    canonical_devices,
    canonical_size,
    check_choice,
    check_json,
    check_no_secrets,
    check_pieces,
    check_positive,
    check_probability,
    check_text,
    plain,
)
from .content import ModelFiles
from .errors import InvalidInputError
from .prompt import DEFAULT_MAX_LENGTH, Template
from .types import DEFAULT_PIECES, Pieces

if TYPE_CHECKING:
    from .models.spec import ModelSpec

#: The model of `Reranker()`; the commands of the command line use the bundled one, which needs no network.
DEFAULT_MODEL = "Qwen/Qwen3-Reranker-0.6B"
BUNDLED_MODEL = "bundled:tiny"

#: The entry point group in which every engine is registered, including those of this package; see `engines.registry`.
ENGINE_GROUP = "qwen3_ranker_plugins.engines"
#: Aliases of engines; settings store the registered name.
ENGINE_ALIASES = {"qwen3_vllm_score": "vllm_score", "qwen3_vllm": "vllm_generate"}
DTYPES = ("auto", "float32", "bfloat16", "float16")
LONG_DOCUMENTS = ("truncate", "pieces")
_DEVICE = re.compile(r"auto|cpu|(cuda|mps|xpu|hpu|npu)(:\d+)?")

MODEL_VARIABLE = "QWEN3_RANKER_MODEL"
DEVICE_VARIABLE = "QWEN3_RANKER_DEVICE"
DEVICES_VARIABLE = "QWEN3_RANKER_DEVICES"
API_KEY_VARIABLE = "QWEN3_RANKER_API_KEY"
#: Maximum size of a cache file in bytes if `cache` is not set.
DEFAULT_FILE_BYTES = 10**9
#: Bytes. A smaller cache would hold a few scores at most, so the value probably lacks its unit.
SMALLEST_CACHE = 1000
#: The server also reads each setting from an environment variable: this prefix and the setting's name in capitals.
VARIABLE_PREFIX = "QWEN3_RANKER_"


@dataclass(frozen=True)
class EngineConfig:
    """Everything that determines an engine. Rerankers with equal configurations share one.

    Attributes:
        engine: a registered name.
        folder: the resolved model folder; None if the engine needs none.
        device: "cpu", "cuda:N" or another torch device; "remote" for the remote engine.
        dtype: "float32", "bfloat16" or "float16"; "remote" for the remote engine.
        token_budget: maximum number of tokens in one forward pass; None lets the engine choose.
        files: the model's files; None if the engine reads none. If a file changes, the configuration differs, so that
            an engine with the old weights is not reused.
        options: the engine's own options as canonical JSON text, which can be compared and hashed; see
            `engine_options`.
        spec: how the model judges a document; None if the engine does not read the model's files.
        adapter: folder of a LoRA adapter that is merged into the weights; None for no adapter.
    """

    engine: str
    folder: Path | None
    device: str
    dtype: str
    token_budget: int | None
    files: ModelFiles | None = None
    options: str = "{}"
    spec: ModelSpec | None = None
    adapter: Path | None = None

    @property
    def engine_options(self) -> dict[str, object]:
        """The engine's own options, as given."""
        options: dict[str, object] = json.loads(self.options)
        return options

    @property
    def model_folder(self) -> Path:
        """`folder`, for an engine that reads its model from one.

        Raises:
            InvalidInputError: `folder` is None.
        """
        if self.folder is None:
            raise InvalidInputError("folder", None, f"engine {self.engine!r} needs the folder of a model")
        return self.folder


@dataclass(frozen=True)
class RerankerSettings:
    """The settings of a reranker. They are checked on construction, without loading a model.

    Attributes:
        model: a hub name, a folder, or "bundled:tiny".
        engine: "auto", a registered name, or a name from ENGINE_ALIASES, which is replaced by the registered name.
        device: "auto", "cpu", "cuda" or "cuda:N", or another torch device: "mps", "xpu", "hpu" or "npu".
        dtype: a name from DTYPES.
        template: "standard" for the prompt that the model was trained on, another name from `prompt.TEMPLATES`, or the
            text of a template.
        instruction: the task that documents are judged for; None for the model's default.
        max_length: maximum length of a prompt in tokens.
        token_budget: maximum number of tokens in one forward pass; None lets the engine choose.
        engine_options: the engine's own options by name, with values that JSON can represent. The engine checks them.
        adapter: a LoRA adapter for the model: a folder or a hub name; "none" to ignore an adapter in the model's own
            folder; None to use that one, if there is one.
        scoring: how the model judges, such as "yes - no", which takes precedence over the checkpoint; see
            `models.Scoring`. None for what the checkpoint says.
        devices: run one engine on each of these devices, each in its own process: "all" for every visible GPU, or a
            list such as "cuda:0,cuda:1" or ["cpu", "cpu"], stored as text. None runs one engine in this process, on
            `device`.
        calibration: path of a calibration file, which maps margins to calibrated scores, see `calibration.Calibration`;
            None for the model's own scores.
        cache: maximum size of a cache of scores, in bytes or as text such as "256MB", stored as bytes; None for no
            cache.
        cache_path: file of the cache, which outlives the process and can be shared with other processes; None keeps the
            cache in memory. The maximum size is 1 GB unless `cache` sets another.
        long_documents: "truncate" to cut off the end of a document that does not fit the prompt, or "pieces" to judge a
            document of more than `piece_tokens` tokens in pieces.
        piece_tokens, piece_overlap, max_pieces: maximum size of those pieces in tokens, their overlap in tokens and
            their maximum number, see `Pieces`.

    Raises:
        InvalidInputError: names the setting, its value and the remedy.
    """

    model: str = DEFAULT_MODEL
    engine: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    template: str = "standard"
    instruction: str | None = None
    max_length: int = DEFAULT_MAX_LENGTH
    token_budget: int | None = None
    engine_options: Mapping[str, object] = field(default_factory=dict, hash=False)
    adapter: str | None = None
    scoring: str | None = None
    devices: str | None = None
    calibration: str | None = None
    cache: int | None = None
    cache_path: str | None = None
    long_documents: str = "truncate"
    piece_tokens: int = DEFAULT_PIECES.tokens
    piece_overlap: int = DEFAULT_PIECES.overlap
    max_pieces: int = DEFAULT_PIECES.limit

    def __post_init__(self) -> None:
        object.__setattr__(self, "devices", canonical_devices(self.devices))
        _make_plain(self)
        check_text("model", self.model)
        object.__setattr__(self, "engine", canonical_engine(self.engine))
        check_choice("dtype", self.dtype, DTYPES)
        if not isinstance(self.device, str) or not _DEVICE.fullmatch(self.device):
            raise InvalidInputError(
                "device", self.device, "use 'auto', 'cpu', 'cuda' or 'cuda:N', or another device of torch such as 'mps'"
            )
        if self.devices is not None and self.device != "auto":
            raise InvalidInputError(
                "devices", self.devices, f"contradicts device={self.device!r}: set only one of them"
            )
        if self.devices is not None and self.engine == "remote":
            raise InvalidInputError("devices", self.devices, "has no effect on the remote engine: leave it out")
        Template.named(self.template)
        for name in ("adapter", "scoring", "instruction", "calibration", "cache_path"):
            if (value := getattr(self, name)) is not None:
                check_text(name, value)
        cache = DEFAULT_FILE_BYTES if self.cache is None and self.cache_path is not None else self.cache
        object.__setattr__(self, "cache", canonical_size("cache", cache))
        if self.cache is not None and self.cache < SMALLEST_CACHE:
            raise InvalidInputError("cache", self.cache, "has no room for scores: give bytes, or a unit as in '256MB'")
        if self.max_length is None:
            raise InvalidInputError("max_length", None, "use a positive integer")
        check_positive("max_length", self.max_length)
        check_positive("token_budget", self.token_budget)
        check_choice("long_documents", self.long_documents, LONG_DOCUMENTS)
        check_pieces(self.cut)
        if self.engine == "remote":
            check_no_secrets(self.engine_options)
        # A copy, so that later changes to the caller's mapping have no effect here.
        object.__setattr__(self, "engine_options", json.loads(check_json("engine_options", self.engine_options)))

    def check_cache_outlives_the_process(self) -> None:
        """Raise InvalidInputError for a cache in memory, which is of no use to a command that ends with its work."""
        if self.cache is not None and self.cache_path is None:
            raise InvalidInputError(
                "cache", self.cache, "give cache_path, too: a cache in memory ends with this command"
            )

    @cached_property
    def cut(self) -> Pieces:
        """How documents are cut if they are judged in pieces."""
        return Pieces(self.piece_tokens, self.piece_overlap, self.max_pieces)

    @cached_property
    def pieces(self) -> Pieces | None:
        """`cut`, or None if each document is judged as a whole."""
        return self.cut if self.long_documents == "pieces" else None


@dataclass(frozen=True)
class RankingOptions:
    """Which documents of a ranking are returned. None means no limit.

    Attributes:
        top_k: maximum number of documents.
        score_threshold: only documents with score >= this, in [0, 1].
        min_confidence: only documents with confidence |P(yes) - P(no)| >= this, in [0, 1]. A confident "no" passes too:
            to drop irrelevant documents, use score_threshold. A warning is logged when a likely relevant document is
            dropped.

    Raises:
        InvalidInputError: a value is out of range.
    """

    top_k: int | None = None
    score_threshold: float | None = None
    min_confidence: float | None = None

    def __post_init__(self) -> None:
        _make_plain(self)
        check_positive("top_k", self.top_k)
        check_probability("score_threshold", self.score_threshold)
        check_probability("min_confidence", self.min_confidence)

    def override(
        self, top_k: int | None = None, score_threshold: float | None = None, min_confidence: float | None = None
    ) -> RankingOptions:
        """These options, replaced by those that a call gives; None keeps the configured value."""
        if top_k is None and score_threshold is None and min_confidence is None:
            return self
        return RankingOptions(
            self.top_k if top_k is None else top_k,
            self.score_threshold if score_threshold is None else score_threshold,
            self.min_confidence if min_confidence is None else min_confidence,
        )


def _make_plain(settings: RerankerSettings | RankingOptions) -> None:
    for each in fields(settings):
        object.__setattr__(settings, each.name, plain(getattr(settings, each.name)))


def canonical_engine(engine: str) -> str:
    """The name under which an engine is registered; "auto" stays as it is.

    Raises:
        InvalidInputError: no such engine is registered.
    """
    if engine == "auto":
        return engine
    name = ENGINE_ALIASES.get(engine, engine) if isinstance(engine, str) else engine
    engine_entry_point(name)
    return name


def engine_entry_point(engine: str) -> EntryPoint:
    """The entry point that registers an engine.

    Raises:
        InvalidInputError: no distribution registers the name, or more than one does.
    """
    if engine not in _registered():
        _registered.cache_clear()  # it may have been installed since
    registered = _registered()
    points = registered.get(engine, []) if isinstance(engine, str) else []
    if len(points) == 1:
        return points[0]
    if points:
        owners = " and ".join(str(point.dist.name) if point.dist else point.value for point in points)
        raise InvalidInputError("engine", engine, f"registered by {owners}: uninstall one of them")
    remedy = f"use one of {', '.join(['auto', *sorted(registered)])}"
    if "packed" not in registered:
        remedy += "; this package's own engines are not registered: install it again (pip install -e . in a checkout)"
    raise InvalidInputError("engine", engine, remedy)


@lru_cache(maxsize=1)
def _registered() -> dict[str, list[EntryPoint]]:
    """Entry points of all engines by name. Reading the metadata of all distributions takes about 30 ms."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=ENGINE_GROUP):
        found.setdefault(point.name, []).append(point)
    return found


def model_from_environment(default: str) -> str:
    """QWEN3_RANKER_MODEL, or the default."""
    return os.environ.get(MODEL_VARIABLE) or default


def secret_from_environment(variable: str) -> str | None:
    """The value of a variable that holds a secret, or None. Keep it out of messages, settings and `repr`."""
    return os.environ.get(variable) or None


def device_from_environment() -> str:
    """QWEN3_RANKER_DEVICE, or "auto"."""
    return os.environ.get(DEVICE_VARIABLE) or "auto"


def devices_from_environment() -> str | None:
    """QWEN3_RANKER_DEVICES, or None."""
    return os.environ.get(DEVICES_VARIABLE) or None


def variables() -> dict[str, str]:
    """The variables QWEN3_RANKER_*: name without the prefix, in lower case -> value, which may be empty."""
    return {
        name.removeprefix(VARIABLE_PREFIX).lower(): value
        for name, value in os.environ.items()
        if name.startswith(VARIABLE_PREFIX)
    }


def variables_in_other_case() -> list[str]:
    """Names of environment variables that differ from ours in upper and lower case only, and are therefore not read."""
    return [
        name for name in os.environ if name.upper().startswith(VARIABLE_PREFIX) and not name.startswith(VARIABLE_PREFIX)
    ]
