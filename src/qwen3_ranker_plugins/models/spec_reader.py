"""Reads how a checkpoint judges a document from its folder and the user's settings; refuses what is unclear.

A causal language model judges by the logits of its label tokens, a sequence classifier by its score head. The labels
and the prompt come from the first of these sources that names them:

1. `scoring=` and `template=` of the user;
2. sentence-transformers' files: `modules.json`, `1_LogitScore/config.json`, the chat template;
3. the score head, compared with the rows of the labels if the embeddings are tied;
4. the architecture and the model's name, for families whose files do not say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidInputError, UnsupportedModelError, remedy_of_reading
from .chat_template import read_chat_template, template_of
from .families import FAMILIES, MXBAI_RERANK_V2, QWEN3_RERANKER, QWEN3_VL_RERANKER, ZERANK, Family
from .spec import ModelSpec, Scoring
from .weights import read_rows

#: Class in `architectures` of a checkpoint that can be scored -> the decoder inside.
DECODERS = {
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3ForSequenceClassification": "qwen3",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen2ForSequenceClassification": "qwen2",
    "Qwen3VLForConditionalGeneration": "qwen3_vl",
}
#: Class in `architectures` of a checkpoint that works differently -> why it is refused.
_OTHER_MECHANISMS = {
    "JinaForRanking": "it is a listwise reranker: a score depends on the other documents of its prompt",
    "LlamaBidirectionalForSequenceClassification": "its attention is bidirectional, so no prefix can be shared",
    "Qwen3Model": "it is an embedding model",
    "Qwen3ForTextEmbedding": "it is an embedding model",
}
# All settings of sentence-transformers' LogitScore that are understood here.
_LOGIT_SCORE = {"true_token_id", "false_token_id", "module_input_name"}


def read_spec(folder: Path, *, name: str = "", scoring: str | None = None) -> ModelSpec:
    """The description of a checkpoint.

    Args:
        folder: with config.json.
        name: what the user called the model; decides the family if the files do not.
        scoring: how to score, instead of how the folder says; see `Scoring.parse`.

    Raises:
        UnsupportedModelError: the folder is damaged, holds another kind of model, or leaves open how it judges.
        InvalidInputError: `scoring` cannot be parsed, or does not fit the architecture.
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
            f"{folder}/config.json names {named!r} as architectures instead of one of {', '.join(DECODERS)}: correct "
            "it, or download the checkpoint again"
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
    """Longest prompt in tokens for which the position embeddings are made, yarn's factor included.

    Raises:
        UnsupportedModelError: the configuration does not state it.
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
        raise UnsupportedModelError(
            f"{folder}/config.json has a quantization_config without a quant_method: download the checkpoint again"
        )
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
                    f"{folder}/modules.json lists a module {kind}, and only sentence-transformers knows what it does "
                    "to a score: use its CrossEncoder"
                )
        _check_transformer_module(folder)
        labels: tuple[int, int | None] | None = None
        for kind, place in kinds:
            if kind == "LogitScore":
                said = read_json(folder / str(place) / "config.json")
                if unknown := sorted(said.keys() - _LOGIT_SCORE):
                    raise UnsupportedModelError(
                        f"{folder}/{place}/config.json has {unknown[0]!r}, and only sentence-transformers knows what "
                        "it does to a score: use its CrossEncoder"
                    )
                true_id, false_id = said.get("true_token_id"), said.get("false_token_id")
                if not isinstance(true_id, int) or not (false_id is None or isinstance(false_id, int)):
                    raise UnsupportedModelError(
                        f"{folder}/{place}/config.json says true_token_id={true_id!r} and false_token_id={false_id!r}, "
                        "which are not token ids; download it again"
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
                "CrossEncoder, or remove the setting"
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
        raise UnsupportedModelError(
            f"{path} names the default prompt {name!r}, but its prompts have no such name: download it again"
        )
    return prompt


def _family(folder: Path, name: str, architecture: str, modules: _Modules, given: Scoring | None) -> tuple[Family, str]:
    """(the family whose defaults apply, why)."""
    if (family := _family_of_chat_template(folder, modules)) is not None:
        return family, f"its chat template is that of {family.name}"
    if architecture.startswith("Qwen3VL"):
        return QWEN3_VL_RERANKER, "config.json: architecture"
    # A snapshot of the hub's cache lies in models--OWNER--NAME/snapshots/REVISION.
    called = f"{name} {folder.name} {folder.parent.parent.name}".lower()
    if "ctxl-rerank" in called:
        raise UnsupportedModelError(
            f"{folder}: the prompt of ctxl-rerank puts the document before the query, so the documents of a query "
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
    """Whether a chat template is made for a reranker, that is, names the roles that sentence-transformers uses."""
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
        # The head was rounded once more than the rows.
        if float(np.abs(row - head[0]).max()) <= 0.01 * float(np.abs(row).max()):
            return family
    return None


def _check_one_label(folder: Path) -> None:
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


def _with_labels(folder: Path, spec: ModelSpec, family: Family, labels: tuple[int, int | None]) -> ModelSpec:
    """The spec with the labels of 1_LogitScore/config.json."""
    from ..prompt.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    positive, negative = (None if each is None else tokenizer.text_of(each) for each in labels)
    if positive is None or (labels[1] is not None and negative is None):
        raise UnsupportedModelError(
            f"{folder}: 1_LogitScore/config.json names ids that the tokenizer does not know: download it again"
        )
    # Only a family tells by what a single logit is divided.
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
