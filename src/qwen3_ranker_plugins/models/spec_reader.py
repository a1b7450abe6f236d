"""Reads how a checkpoint judges a document from its folder and the user's settings; refuses what is unclear.

A causal language model judges by the logits of its label tokens, a sequence classifier by its score head. The labels
and the prompt come from the first of these sources that names them:

1. `scoring=` and `template=` of the user;
2. sentence-transformers' files: `modules.json`, `1_LogitScore/config.json`, the chat template;
3. the score head, compared with the rows of the labels if the embeddings are tied;
4. the architecture and the model's name, for families whose files do not say, see `family_choice.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError, UnsupportedModelError
from .chat_template import ChatTemplate
from .config_settings import check_own_code, check_settings, check_weights, max_positions
from .cross_encoder_files import CrossEncoderFiles
from .families import FAMILIES, Family
from .family_choice import choose_family
from .gguf_prompt import with_stated_prompt
from .json_files import read_json, shortened
from .score_head import check_head, divisor_of_head
from .spec import ModelSpec, Scoring
from .weights import read_headers

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
#: Files that say how a model judges, as the source of a part of its description.
_LABELS, _CHAT, _PROMPT = "1_LogitScore/config.json", "its chat template", "config_sentence_transformers.json"


def read_spec(
    folder: Path,
    *,
    name: str = "",
    scoring: str | None = None,
    adapter: Path | None = None,
    template: str = "standard",
) -> ModelSpec:
    """The description of a checkpoint.

    Args:
        folder: with config.json.
        name: what the user called the model; decides the family if the files do not.
        scoring: how to score, instead of how the folder says; see `Scoring.parse`.
        adapter: folder of an adapter for the model. If it says how to judge, as sentence-transformers saves it, this
            takes precedence over what the folder of the model says.
        template: as in `RerankerSettings`; another one than "standard" takes the place of the folder's prompt, so the
            folder need not say it.

    Raises:
        UnsupportedModelError: the folder is damaged, holds another kind of model, or leaves open how it judges.
        InvalidInputError: `scoring` cannot be parsed, or does not fit the architecture.
    """
    given = None if scoring is None else Scoring.parse(scoring)
    path = folder / "config.json"
    config = read_json(path)
    architecture = _architecture(folder, config)
    decoder = DECODERS[architecture]
    settings, quantization = _text_config(path, config), _quantization(folder, config)
    check_settings(path, settings)
    check_weights(path, settings, read_headers(folder), plain=quantization is None)
    if architecture.endswith("ForSequenceClassification"):
        check_head(folder)
    has_template = template != "standard"
    described, modules, chat = _described(
        folder, adapter, has_processor=decoder == "qwen3_vl", has_template=has_template
    )
    sources = {"architecture": "config.json"}
    positions = max_positions(path, settings)
    if modules.max_length is not None and modules.max_length < positions:
        positions = modules.max_length
        sources["max_positions"] = "model_max_length, max_seq_length or max_length in sentence-transformers' files"

    family, why = choose_family(folder, name, architecture, modules.labels, chat, given, has_template=has_template)
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
        max_positions=positions,
        quantization=quantization,
        sources=sources | dict.fromkeys(("scoring", "template", "instruction"), family.source),
    )
    if architecture.endswith("ForSequenceClassification"):
        is_decided = given is not None and (not given.is_score_head or "/" in str(scoring))
        head = Scoring(None, None, family.divisor if is_decided else divisor_of_head(folder, family))
        spec = replace(spec, scoring=head, sources=dict(spec.sources) | {"scoring": "its score head"})
    elif modules.labels is not None:
        spec = _with_labels(folder, described, spec, family, modules.labels)
    elif modules.present and given is None:
        raise UnsupportedModelError(
            f"{described}/modules.json lists no LogitScore, so it does not say which labels are compared: give them as "
            "scoring=, such as 'yes - no', or remove modules.json"
        )
    spec = _with_chat_template(spec, chat, modules, family)
    if described == folder:
        spec = with_stated_prompt(folder, spec)
    else:
        files = (_LABELS, _CHAT, _PROMPT)
        spec = replace(spec, sources={k: f"{v} of the adapter" if v in files else v for k, v in spec.sources.items()})
    if given is not None:
        if given.is_score_head != spec.scoring.is_score_head:
            has = "has a score head" if spec.scoring.is_score_head else "has no score head but label tokens"
            raise InvalidInputError("scoring", scoring, f"{folder} ({architecture}) {has}")
        same = (given.positive, given.negative) == (spec.scoring.positive, spec.scoring.negative)
        if same and "/" not in str(scoring):  # only a family tells by what its logit or its score head is divided
            given = replace(given, divisor=spec.scoring.divisor)
        spec = replace(spec, scoring=given, sources=dict(spec.sources) | {"scoring": "given"})
    return spec


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
    if _text_config(folder / "config.json", config).get("is_causal") is False:
        raise UnsupportedModelError(
            f"{folder}/config.json says is_causal=false: its attention is bidirectional, so no prefix can be shared; "
            "use the library that its model card names"
        )
    check_own_code(folder / "config.json", config, "AutoModel")
    return names[0]


def _text_config(path: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("text_config")
    if config.get("model_type") == "qwen3_vl" and not isinstance(inner, Mapping):
        raise UnsupportedModelError(
            f"{path} says text_config={shortened(inner)} instead of the settings of the text decoder: download it again"
        )
    if config.get("model_type") != "qwen3_vl" and inner is not None:
        raise UnsupportedModelError(
            f"{path} says text_config={shortened(inner)}, and a {config.get('model_type')} model has none, so "
            "libraries differ on which settings count: remove it"
        )
    return inner if isinstance(inner, Mapping) else config


def _quantization(folder: Path, config: Mapping[str, Any]) -> str | None:
    path = folder / "config.json"
    found = next(
        (
            each["quantization_config"]
            for each in (config, _text_config(path, config))
            if each.get("quantization_config") is not None
        ),
        None,
    )
    if isinstance(found or config.get("quantization"), Mapping) and _is_of_mlx(found or config["quantization"]):
        raise UnsupportedModelError(
            f"{folder} holds weights quantised by MLX, which only MLX reads: use the checkpoint that it was made from, "
            "or write a plain one with `mlx_lm.convert --dequantize`"
        )
    if found is None:
        return None
    method = found.get("quant_method") if isinstance(found, Mapping) else None
    if not isinstance(method, str):
        raise UnsupportedModelError(
            f"{path} has a quantization_config without a quant_method ({shortened(found)}): if the weights are not "
            "quantised, remove it, else download the file again"
        )
    return method


def _is_of_mlx(settings: Mapping[str, Any]) -> bool:
    return "quant_method" not in settings and {"group_size", "bits"} <= settings.keys()


def _described(
    folder: Path, adapter: Path | None, *, has_processor: bool, has_template: bool
) -> tuple[Path, CrossEncoderFiles, ChatTemplate | None]:
    """(the folder whose files say how the model judges, sentence-transformers' files, the chat template for pairs)."""
    empty_documents = {each.empty_document for each in FAMILIES}
    for described in (folder,) if adapter is None else (adapter, folder):
        modules = CrossEncoderFiles.read(described)
        chat = ChatTemplate.read(described, modules, has_processor=has_processor)
        if chat is not None and not ((modules.present or chat.is_for_pairs) and chat.renders_pairs(empty_documents)):
            chat = None  # it is for chats
        if modules.present or chat is not None:
            break
    if modules.present and chat is None and not has_template:
        raise UnsupportedModelError(
            f"{described} has sentence-transformers' modules.json, and no chat template that renders a query and a "
            "document, so it does not say on which prompt it was trained: copy chat_template.jinja from the original, "
            "or give the text of the prompt as template= (Qwen3-Reranker's is "
            "qwen3_ranker_plugins.prompt.TEMPLATES['standard'])"
        )
    return described, modules, chat


def _with_labels(
    folder: Path, described: Path, spec: ModelSpec, family: Family, labels: tuple[int, int | None]
) -> ModelSpec:
    """The spec with the labels of 1_LogitScore/config.json."""
    from ..prompt.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    positive, negative = (None if each is None else tokenizer.text_of(each) for each in labels)
    for label, text in zip(labels, (positive, negative), strict=True):
        if text is not None and tokenizer.find(text) != label:
            raise UnsupportedModelError(
                f"{described}: 1_LogitScore/config.json names the id {label}, and no text is that token alone "
                f"({text!r} is not): use sentence-transformers' CrossEncoder"
            )
    if positive is None or (labels[1] is not None and negative is None):
        raise UnsupportedModelError(
            f"{described}: 1_LogitScore/config.json names ids that the tokenizer does not know: download it again"
        )
    # Only a family tells by what a single logit is divided.
    divisor = family.divisor if (positive, negative) == (family.positive, family.negative) else 1.0
    return replace(
        spec,
        scoring=Scoring(positive, negative, divisor),
        sources=dict(spec.sources) | {"scoring": _LABELS},
    )


def _with_chat_template(
    spec: ModelSpec, chat: ChatTemplate | None, modules: CrossEncoderFiles, family: Family
) -> ModelSpec:
    """The spec with the prompt of the folder's chat template, and with sentence-transformers' default prompt."""
    if chat is None:
        if modules.instruction is None:
            return spec
        return replace(spec, instruction=modules.instruction, sources=dict(spec.sources) | {"instruction": _PROMPT})
    plain, instructed = (
        chat.as_template(with_instruction=each, empty_documents={family.empty_document}) for each in (False, True)
    )
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
        sources=dict(spec.sources) | {"template": _CHAT, "instruction": _PROMPT},
    )
