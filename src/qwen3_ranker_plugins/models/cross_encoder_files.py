"""Reads the files in which sentence-transformers describes a reranker that reads logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import UnsupportedModelError
from ..model_files import is_listed
from .json_files import read_any_json, read_json, shortened

# All settings of sentence-transformers' LogitScore that are understood here.
_LOGIT_SCORE = {"true_token_id", "false_token_id", "module_input_name"}

#: How sentence-transformers passes a message to the chat template.
_FORMATS = ("auto", "flat", "structured")


@dataclass(frozen=True)
class CrossEncoderFiles:
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
    def read(cls, folder: Path) -> CrossEncoderFiles:
        """Read the files of a folder.

        Raises:
            UnsupportedModelError: they are damaged, or ask for something that only sentence-transformers does.
        """
        path = folder / "modules.json"
        if not is_listed(path):
            return cls()
        kinds = _modules(path)
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
        places = [place for kind, place in kinds if kind == "LogitScore"]
        labels = _labels(folder / places[0] / "config.json") if places else None
        return cls(True, labels, _default_prompt(folder))


def _modules(path: Path) -> list[tuple[str, str]]:
    """(class, folder) of each module that modules.json lists."""
    listed = read_any_json(path)
    if not isinstance(listed, list) or not all(isinstance(each, Mapping) for each in listed):
        raise UnsupportedModelError(f"{path} holds {shortened(listed)} instead of a list of modules: download it again")
    for number, module in enumerate(listed):
        for name in ("type", "path"):
            value = module.get(name)
            if not isinstance(value, str) or (name == "path" and not _is_inside(value)):
                raise UnsupportedModelError(
                    f"{path} says {name}={shortened(value)} of module {number}, which is not "
                    f"{'the name of a class' if name == 'type' else 'a folder in the folder of the model'}: write the "
                    "name that it has in the original, such as '1_LogitScore', or download the file again"
                )
    return [(module["type"].rpartition(".")[2], module["path"]) for module in listed]


def _is_inside(place: str) -> bool:
    return not Path(place).is_absolute() and ".." not in Path(place).parts


def _labels(path: Path) -> tuple[int, int | None]:
    said = read_json(path)
    if unknown := sorted(said.keys() - _LOGIT_SCORE):
        raise UnsupportedModelError(
            f"{path} has {unknown[0]!r}, and only sentence-transformers knows what it does to a score: use its "
            "CrossEncoder"
        )
    if (read := said.get("module_input_name", "causal_logits")) != "causal_logits":
        raise UnsupportedModelError(
            f"{path} says module_input_name={read!r} instead of 'causal_logits', and only sentence-transformers knows "
            "what that is: use its CrossEncoder"
        )
    true_id, false_id = said.get("true_token_id"), said.get("false_token_id")
    # true is a number in Python, and a negative number would count from the end of the vocabulary.
    if type(true_id) is int and true_id >= 0 and (false_id is None or (type(false_id) is int and false_id >= 0)):
        return true_id, false_id
    raise UnsupportedModelError(
        f"{path} says true_token_id={true_id!r} and false_token_id={false_id!r}, which are not token ids; download it "
        "again"
    )


def _check_transformer_module(folder: Path) -> None:
    """Raise an UnsupportedModelError if sentence_bert_config.json changes texts before they reach the chat template."""
    path = folder / "sentence_bert_config.json"
    if not is_listed(path):
        return
    said = read_json(path)
    modalities = said.get("modality_config")
    message = modalities.get("message") if isinstance(modalities, Mapping) else None
    if not isinstance(message, Mapping):
        raise UnsupportedModelError(
            f"{path} has no 'message' in its modality_config, so sentence-transformers joins query and document "
            "without a prompt: use its CrossEncoder, or add the setting"
        )
    if message.get("format", "auto") not in _FORMATS:
        raise UnsupportedModelError(
            f"{path} says modality_config.message.format={shortened(message['format'])} instead of one of "
            f"{', '.join(_FORMATS)}: download it again, or use sentence-transformers' CrossEncoder"
        )
    for name in ("do_lower_case", "processing_kwargs"):
        if said.get(name):
            raise UnsupportedModelError(
                f"{path} says {name}={said[name]!r}, which changes prompts in sentence-transformers only: use its "
                "CrossEncoder, or remove the setting"
            )


def _default_prompt(folder: Path) -> str | None:
    path = folder / "config_sentence_transformers.json"
    if not is_listed(path):
        return None
    said = read_json(path)
    name, prompts = said.get("default_prompt_name"), said.get("prompts")
    if name is None:
        return None
    prompt = prompts.get(name) if isinstance(prompts, Mapping) and isinstance(name, str) else None
    if not isinstance(prompt, str):
        raise UnsupportedModelError(
            f"{path} names the default prompt {name!r}, but its prompts have no such name: download it again"
        )
    return prompt or None  # sentence-transformers passes no system message with an empty prompt
