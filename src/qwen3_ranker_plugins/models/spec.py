"""How a checkpoint judges a document: read from its folder, or given by the user, and refused where nothing is clear.

A causal language model says it by the logits of its label tokens, a sequence classifier by its score head. Which
labels, and which prompt, is read from what lies in the folder, in this order:

1. `scoring=` and `template=` of the user;
2. sentence-transformers' files: `modules.json`, `1_LogitScore/config.json`, the chat template;
3. the score head, compared with the rows of the labels where the embeddings are tied;
4. the architecture and the model's name, for families that say nothing themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidInputError, UnsupportedModelError, remedy_of_reading
from .chat_template import read_chat_template, template_of
from .families import FAMILIES, MXBAI_RERANK_V2, QWEN3_RERANKER, QWEN3_VL_RERANKER, ZERANK, Family
from .weights import read_rows

if TYPE_CHECKING:
    from ..prompt.tokenizer import ModelTokenizer

#: Architectures that score, by the class in `architectures` -> the decoder inside.
DECODERS = {
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3ForSequenceClassification": "qwen3",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen2ForSequenceClassification": "qwen2",
    "Qwen3VLForConditionalGeneration": "qwen3_vl",
}
#: Architectures of rerankers that work differently -> why they are refused.
_OTHER_MECHANISMS = {
    "JinaForRanking": "it is a listwise reranker: a score depends on the other documents of its prompt",
    "LlamaBidirectionalForSequenceClassification": "its attention is bidirectional, so no prefix can be shared",
    "Qwen3Model": "it is an embedding model",
    "Qwen3ForTextEmbedding": "it is an embedding model",
}
_SCORING = re.compile(r"\s*(?P<positive>[^\s/-]+)\s*(?:-\s*(?P<negative>[^\s/-]+)\s*)?(?:/\s*(?P<divisor>[0-9.]+)\s*)?")
# What LogitScore of sentence-transformers is made of.
_LOGIT_SCORE = {"true_token_id", "false_token_id", "module_input_name"}
#: `scoring=` of a sequence classifier: the margin is what its score head says.
SCORE_HEAD = "score-head"


@dataclass(frozen=True)
class Scoring:
    """How a margin is made of what the model says at the last position of a prompt.

    Label tokens: margin = (logit[positive] - logit[negative]) / divisor, or logit[positive] / divisor if `negative` is
    None. A score head (`positive` is None): margin = (weight . hidden + bias) / divisor.

    Attributes:
        positive, negative: texts of the label tokens.
        divisor: a positive number.
    """

    positive: str | None
    negative: str | None = None
    divisor: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Scoring:
        """`"yes - no"`, `"Yes / 5"`, `"1 - 0"`, or `"score-head"`.

        Raises:
            InvalidInputError: it is none of these.
        """
        if isinstance(text, str):
            if text.strip() == SCORE_HEAD:
                return cls(None)
            if match := _SCORING.fullmatch(text):
                try:
                    divisor = float(match["divisor"] or 1)
                except ValueError:
                    divisor = 0.0
                if divisor > 0:
                    return cls(match["positive"], match["negative"], divisor)
        raise InvalidInputError(
            "scoring", text, f"use label tokens such as 'yes - no', '1 - 0' or 'Yes / 5', or {SCORE_HEAD!r}"
        )

    @property
    def is_score_head(self) -> bool:
        """Whether a score head is read, and not label tokens."""
        return self.positive is None

    def __str__(self) -> str:
        if self.positive is None:
            text = SCORE_HEAD
        else:
            text = self.positive if self.negative is None else f"{self.positive} - {self.negative}"
        return text if self.divisor == 1 else f"{text} / {self.divisor:g}"


@dataclass(frozen=True)
class ModelSpec:
    """Everything that turns a query and a document into a margin, and where each part comes from.

    Attributes:
        architecture: the class in `architectures`.
        decoder: "qwen3", "qwen2" or "qwen3_vl".
        family: name of the `Family` whose defaults apply where the checkpoint does not say.
        scoring: see `Scoring`.
        template: text of the prompt with an instruction, see `prompt.Template`.
        template_without_instruction: text of the prompt without one; None if there is always one.
        instruction: the default one; None for no instruction.
        empty_document: what stands in the prompt for a document without text.
        max_positions: longest prompt in tokens that the position embeddings are made for.
        quantization: `quant_method` of config.json; None if the weights are plain.
        sources: name of an attribute -> where it was read.
    """

    architecture: str
    decoder: str
    family: str
    scoring: Scoring
    template: str
    template_without_instruction: str | None
    instruction: str | None
    empty_document: str
    max_positions: int
    quantization: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def facts(self) -> dict[str, str]:
        """The description for people, each part with its source."""

        def with_source(name: str, value: str) -> str:
            return f"{value} ({self.sources[name]})" if name in self.sources else value

        return {
            "architecture": with_source("architecture", self.architecture),
            "family": with_source("family", self.family),
            "scoring": with_source("scoring", str(self.scoring)),
            "template": with_source("template", "its own"),
            "instruction": with_source("instruction", self.instruction or "none"),
            "max_positions": str(self.max_positions),
            "quantization": self.quantization or "none",
        }

    @property
    def fingerprint(self) -> dict[str, str | None]:
        """What a margin depends on besides the weights, for jobs that are resumed and for caches."""
        return {
            "architecture": self.architecture,
            "scoring": str(self.scoring),
            "template": self.template,
            "template_without_instruction": self.template_without_instruction,
            "instruction": self.instruction,
        }


def read_spec(folder: Path, *, name: str = "", scoring: str | None = None) -> ModelSpec:
    """The description of a checkpoint.

    Args:
        folder: with config.json.
        name: what the user called the model; tells families that say nothing in their files.
        scoring: how to score, in place of what the folder says; see `Scoring.parse`.

    Raises:
        UnsupportedModelError: the folder is damaged, holds another kind of model, or says nothing clear.
        InvalidInputError: `scoring` cannot be read.
    """
    given = None if scoring is None else Scoring.parse(scoring)
    config = read_json(folder / "config.json")
    architecture = _architecture(folder, config)
    decoder = DECODERS[architecture]
    modules = _Modules.read(folder)
    sources = {"architecture": "config.json"}

    family, why = _family(folder, name, architecture, modules, given)
    sources["family"] = why
    spec = ModelSpec(
        architecture=architecture,
        decoder=decoder,
        family=family.name,
        scoring=Scoring(family.positive, family.negative, family.divisor),
        template=family.template,
        template_without_instruction=family.template_without_instruction,
        instruction=family.instruction,
        empty_document=family.empty_document,
        max_positions=max_positions(_text_config(config)),
        quantization=_quantization(folder, config),
        sources=sources | dict.fromkeys(("scoring", "template", "instruction"), family.source),
    )
    if architecture.endswith("ForSequenceClassification"):
        _check_one_label(folder)
        divisor = family.divisor if family is not QWEN3_RERANKER else 1.0
        spec = replace(spec, scoring=Scoring(None, None, divisor), sources=sources | {"scoring": "its score head"})
    elif modules.labels is not None:
        spec = _with_labels(folder, spec, family, modules.labels)
    spec = _with_chat_template(folder, spec, modules, family)
    if given is not None:
        if given.is_score_head != spec.scoring.is_score_head:
            has = "has a score head" if spec.scoring.is_score_head else "has no score head but label tokens"
            raise InvalidInputError("scoring", scoring, f"{folder} ({architecture}) {has}")
        spec = replace(spec, scoring=given, sources=dict(spec.sources) | {"scoring": "given"})
    return spec


def read_json(path: Path) -> dict[str, Any]:
    """An object in a JSON file.

    Raises:
        UnsupportedModelError: there is no such file, or it is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UnsupportedModelError(
            f"{path.parent} has no {path.name}: give the folder of a transformers model"
        ) from error
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(f"{path} cannot be read ({error}); {remedy_of_reading(error)}") from error
    if not isinstance(found, dict):
        raise UnsupportedModelError(f"{path} holds no JSON object; download it again")
    return found


def _architecture(folder: Path, config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    names = [named] if isinstance(named, str) else named
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise UnsupportedModelError(
            f"{folder}/config.json names {named!r} as architectures, where one of {', '.join(DECODERS)} was looked "
            "for: add it, or download the checkpoint again"
        )
    if names[0] in _OTHER_MECHANISMS:
        raise UnsupportedModelError(
            f"{folder} holds {names[0]}: {_OTHER_MECHANISMS[names[0]]}; use the library that its model card names"
        )
    if names[0] not in DECODERS:
        raise UnsupportedModelError(
            f"{folder} holds {names[0]}, and this package scores {', '.join(DECODERS)}: use a Qwen3-Reranker "
            "checkpoint or one of its conversions"
        )
    if config.get("model_type") != DECODERS[names[0]]:
        raise UnsupportedModelError(
            f"{folder}/config.json says model_type={config.get('model_type')!r} and {names[0]}, which do not belong "
            "together; download it again"
        )
    if _text_config(config).get("is_causal") is False:
        raise UnsupportedModelError(
            f"{folder}/config.json says is_causal=false: its attention is bidirectional, so no prefix can be shared; "
            "use the library that its model card names"
        )
    return names[0]


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def max_positions(config: Mapping[str, Any]) -> int:
    """Longest prompt in tokens that the position embeddings are made for; yarn's factor counted.

    Raises:
        UnsupportedModelError: the configuration does not say.
    """
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int) or positions < 1:
        raise UnsupportedModelError(f"config.json says max_position_embeddings={positions!r}; download it again")
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    original, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
    if isinstance(original, int) and isinstance(factor, (int, float)):
        positions = max(positions, int(original * factor))
    return positions


def _quantization(folder: Path, config: Mapping[str, Any]) -> str | None:
    found = config.get("quantization_config") or _text_config(config).get("quantization_config")
    if not found:
        return None
    method = found.get("quant_method") if isinstance(found, Mapping) else None
    if not isinstance(method, str):
        raise UnsupportedModelError(f"{folder}/config.json has a quantization_config without a quant_method")
    return method


@dataclass(frozen=True)
class _Modules:
    """What sentence-transformers' modules.json says.

    Attributes:
        present: whether there is one.
        labels: ids of the positive and the negative token; the second may be None.
        instruction: its default prompt.
    """

    present: bool = False
    labels: tuple[int, int | None] | None = None
    instruction: str | None = None

    @classmethod
    def read(cls, folder: Path) -> _Modules:
        path = folder / "modules.json"
        if not path.is_file():
            return cls()
        try:
            modules = json.loads(path.read_text(encoding="utf-8"))
            kinds = [(str(module["type"]).rpartition(".")[2], module["path"]) for module in modules]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UnsupportedModelError(f"{path} cannot be read ({error!r}); {remedy_of_reading(error)}") from error
        for kind, _ in kinds:
            if kind in ("Pooling", "WordEmbeddings", "SpladePooling", "Normalize"):
                raise UnsupportedModelError(
                    f"{folder} is an embedding model: its modules.json lists {kind}; use the reranker of its series, "
                    "such as Qwen/Qwen3-Reranker-0.6B"
                )
            if kind not in ("Transformer", "LogitScore"):
                raise UnsupportedModelError(
                    f"{folder}/modules.json lists a module {kind}, of which only sentence-transformers knows what it "
                    "does to a score: use its CrossEncoder"
                )
        _check_transformer_module(folder)
        labels: tuple[int, int | None] | None = None
        for kind, place in kinds:
            if kind == "LogitScore":
                said = read_json(folder / str(place) / "config.json")
                if unknown := sorted(said.keys() - _LOGIT_SCORE):
                    raise UnsupportedModelError(
                        f"{folder}/{place}/config.json has {unknown[0]!r}, of which only sentence-transformers knows "
                        "what it does to a score: use its CrossEncoder"
                    )
                true_id, false_id = said.get("true_token_id"), said.get("false_token_id")
                if not isinstance(true_id, int) or not (false_id is None or isinstance(false_id, int)):
                    raise UnsupportedModelError(
                        f"{folder}/{place}/config.json says true_token_id={true_id!r} and false_token_id={false_id!r}, "
                        "where token ids were looked for; download it again"
                    )
                labels = (true_id, false_id)
        return cls(True, labels, _default_prompt(folder))


def _check_transformer_module(folder: Path) -> None:
    """Raise an UnsupportedModelError if sentence_bert_config.json changes texts before they reach the chat template."""
    path = folder / "sentence_bert_config.json"
    said = read_json(path) if path.is_file() else {}
    for name in ("do_lower_case", "processing_kwargs"):
        if said.get(name):
            raise UnsupportedModelError(
                f"{path} says {name}={said[name]!r}, which changes prompts in sentence-transformers only: use its "
                "CrossEncoder, or take it out"
            )


def _default_prompt(folder: Path) -> str | None:
    path = folder / "config_sentence_transformers.json"
    if not path.is_file():
        return None
    said = read_json(path)
    name, prompts = said.get("default_prompt_name"), said.get("prompts")
    if name is None:
        return None
    prompt = prompts.get(name) if isinstance(prompts, Mapping) else None
    if not isinstance(prompt, str):
        raise UnsupportedModelError(f"{path} names the default prompt {name!r}, which it does not have")
    return prompt


def _family(folder: Path, name: str, architecture: str, modules: _Modules, given: Scoring | None) -> tuple[Family, str]:
    """(the family whose defaults hold, why)."""
    if (family := _family_of_chat_template(folder, modules)) is not None:
        return family, f"its chat template is that of {family.name}"
    if architecture.startswith("Qwen3VL"):
        return QWEN3_VL_RERANKER, "config.json: architecture"
    # A snapshot of the hub's cache lies in models--OWNER--NAME/snapshots/REVISION.
    called = f"{name} {folder.name} {folder.parent.parent.name}".lower()
    if "ctxl-rerank" in called:
        raise UnsupportedModelError(
            f"{folder}: the prompt of ctxl-rerank puts the document before the query, so that the documents of a query "
            "share no prefix; use the library that its model card names"
        )
    for words, family in (("zerank", ZERANK), ("mxbai-rerank", MXBAI_RERANK_V2)):
        if words in called:
            return family, f"the model's name holds {words!r}"
    if architecture.endswith("ForSequenceClassification") and (found := _family_of_head(folder)) is not None:
        return found, "its score head is made of the label rows of its embeddings"
    if not architecture.startswith("Qwen2"):
        return QWEN3_RERANKER, f"{architecture} with nothing else said"
    labels = (MXBAI_RERANK_V2.positive, MXBAI_RERANK_V2.negative)
    if given is not None and (given.positive, given.negative) == labels:
        return MXBAI_RERANK_V2, "the labels that were given"
    raise UnsupportedModelError(
        f"{folder} holds {architecture} and does not say how it judges a document: neither a chat template with a "
        "query and a document, nor a known name such as mxbai-rerank-base-v2 was found; if it is such a model, give "
        "scoring='1 - 0'"
    )


def _family_of_chat_template(folder: Path, modules: _Modules) -> Family | None:
    chat = read_chat_template(folder)
    if chat is None or not (modules.present or _renders_pairs(chat)):
        return None
    text = template_of(chat, with_instruction=False)
    if text is None:
        return None
    return next((each for each in FAMILIES if text in (each.template, each.template_without_instruction)), None)


def _renders_pairs(chat: str) -> bool:
    """Whether a chat template is made for a reranker: it names the roles of sentence-transformers."""
    return all(re.search(rf"""['"]{role}['"]""", chat) for role in ("query", "document"))


def _family_of_head(folder: Path) -> Family | None:
    """The family whose label rows make up the score head of a classifier with tied embeddings."""
    from ..prompt.tokenizer import load_tokenizer

    head = read_rows(folder, "score.weight", [0])
    if head is None:
        return None
    tokenizer = load_tokenizer(folder)
    for family in FAMILIES:
        ids = [tokenizer.find(word) for word in (family.positive, family.negative) if word is not None]
        if None in ids:
            continue
        rows = read_rows(folder, "model.embed_tokens.weight", [each for each in ids if each is not None])
        if rows is None:
            return None
        row = rows[0] if len(rows) == 1 else rows[0] - rows[1]
        # The head was rounded once more than the rows were.
        if float(np.abs(row - head[0]).max()) <= 0.01 * float(np.abs(row).max()):
            return family
    return None


def _check_one_label(folder: Path) -> None:
    head = read_rows(folder, "score.weight", None)
    if head is None:
        raise UnsupportedModelError(
            f"{folder} is a classifier whose weights have no score.weight that can be read: convert it again, or use "
            "the causal model that it was made from"
        )
    if (labels := len(head)) != 1:
        raise UnsupportedModelError(
            f"{folder} is a classifier with {labels} labels, of which it does not say which one is relevance: convert "
            "it to one label, whose weight is the row of 'yes' minus the row of 'no'"
        )


def _with_labels(folder: Path, spec: ModelSpec, family: Family, labels: tuple[int, int | None]) -> ModelSpec:
    """The spec with the labels of 1_LogitScore/config.json."""
    from ..prompt.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    positive, negative = (None if each is None else tokenizer.text_of(each) for each in labels)
    if positive is None or (labels[1] is not None and negative is None):
        raise UnsupportedModelError(f"{folder}: 1_LogitScore/config.json names ids that the tokenizer does not know")
    # What a single logit is divided by is known of a family only.
    divisor = family.divisor if (positive, negative) == (family.positive, family.negative) else 1.0
    return replace(
        spec,
        scoring=Scoring(positive, negative, divisor),
        sources=dict(spec.sources) | {"scoring": "1_LogitScore/config.json"},
    )


def _with_chat_template(folder: Path, spec: ModelSpec, modules: _Modules, family: Family) -> ModelSpec:
    """The spec with the prompt of the folder's chat template, if that renders a query and a document."""
    chat = read_chat_template(folder)
    if chat is None or not (modules.present or _renders_pairs(chat)):
        return spec
    try:
        plain, instructed = (template_of(chat, with_instruction=each) for each in (False, True))
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{folder}: {error}") from error
    if plain is None and instructed is None:
        return spec
    known = {family.template, family.template_without_instruction}
    if modules.instruction is None and plain in known:
        return spec
    if instructed is None:
        instructed, instruction = plain, None
    else:
        instruction = modules.instruction
    assert instructed is not None  # noqa: S101 - one of the two is there
    return replace(
        spec,
        template=instructed,
        template_without_instruction=plain,
        instruction=instruction,
        sources=dict(spec.sources)
        | {"template": "its chat template", "instruction": "config_sentence_transformers.json"},
    )


def label_ids(scoring: Scoring, tokenizer: ModelTokenizer, folder: Path) -> tuple[int, int | None]:
    """Ids of the positive and the negative label token.

    Raises:
        UnsupportedModelError: a label is not one token.
    """
    ids = [None if word is None else tokenizer.find(word) for word in (scoring.positive, scoring.negative)]
    for word, found in zip((scoring.positive, scoring.negative), ids, strict=True):
        if word is not None and found is None:
            raise UnsupportedModelError(
                f"{folder} cannot be scored as {str(scoring)!r}: its tokenizer splits {word!r} into "
                f"{len(tokenizer.encode(word))} tokens, so there is no single logit to read; use a "
                "Qwen3-Reranker checkpoint, or give its labels as scoring="
            )
    positive, negative = ids
    assert positive is not None  # noqa: S101 - a score head has no label ids
    return positive, negative
