"""Reads the files in which sentence-transformers describes a reranker that reads logits.

A setting of these files is followed, is known to have no effect on a score, or is refused by its name, because only
sentence-transformers knows what it does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UnsupportedModelError
from ..model_files import is_listed
from .json_files import read_any_json, read_json, shortened

_PACKAGE = "sentence_transformers."
#: Modules of sentence-transformers that only an embedding model has.
_OF_EMBEDDINGS = ("Pooling", "WordEmbeddings", "SpladePooling", "Normalize")
#: How sentence-transformers passes a message to the chat template.
_FORMATS = ("auto", "flat", "structured")
#: Settings that are followed or checked below -> None, or the only values that leave scores as they are.
_MODULE: dict[str, tuple[object, ...] | None] = {"idx": None, "name": None, "path": None, "type": None, "kwargs": None}
_LOGIT_SCORE: dict[str, tuple[object, ...] | None] = {
    "true_token_id": None,
    "false_token_id": None,
    "module_input_name": ("causal_logits",),
}
_MODEL: dict[str, tuple[object, ...] | None] = {
    "model_type": ("CrossEncoder",),
    "prompts": None,
    "default_prompt_name": None,
    # A margin is what precedes the activation.
    "activation_fn": (
        None,
        "torch.nn.modules.activation.Sigmoid",
        "torch.nn.modules.linear.Identity",
        "torch.nn.Sigmoid",
        "torch.nn.Identity",
    ),
    "__version__": None,
    "requirements": None,
    "similarity_fn_name": None,
    "keep_in_fp32_modules": None,  # decides the rounding only
}
_TRANSFORMER: dict[str, tuple[object, ...] | None] = {
    "transformer_task": ("text-generation", "any-to-any", "sequence-classification"),
    "modality_config": None,
    "module_output_name": ("causal_logits", "scores"),
    "processing_kwargs": None,
    "max_seq_length": None,
    "do_lower_case": (False, None),
    "tokenizer_name_or_path": (None,),
    "unpad_inputs": None,
    # A pair is neither a query nor a document to the module.
    "query_length": None,
    "document_length": None,
    "query_expansion": None,
} | dict.fromkeys(
    ("model_kwargs", "processor_kwargs", "config_kwargs", "model_args", "tokenizer_args", "config_args"), ({}, None)
)
#: Settings in `processing_kwargs`.
_OF_TEXTS: dict[str, tuple[object, ...] | None] = {
    "max_length": None,
    "truncation": (True, "longest_first"),
    "padding": None,
    "padding_side": ("left",),
    "logits_to_keep": None,
}
_OF_MESSAGE: dict[str, tuple[object, ...] | None] = {"method": ("forward",), "method_output_name": None, "format": None}
#: Arguments of `apply_chat_template` that are no variables of the template.
_NO_VARIABLES = {
    "restore_suffix", "truncation", "max_length", "padding", "return_tensors", "chat_template", "tools", "documents",
    "continue_final_message", "tokenize", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
    "conversation", "messages",
}  # fmt: skip


@dataclass(frozen=True)
class CrossEncoderFiles:
    """What sentence-transformers' files say.

    Attributes:
        present: whether there is a modules.json. Without one, CrossEncoder uses the defaults below.
        labels: ids of the positive and the negative token; the second may be None.
        instruction: its default prompt.
        message_format: "flat" if the content of a message is its text, "structured" if it is a list with the text, and
            "auto" if the chat template decides.
        variables: what the chat template gets besides the messages.
        max_length: longest prompt in tokens; None if the files do not limit it.
    """

    present: bool = False
    labels: tuple[int, int | None] | None = None
    instruction: str | None = None
    message_format: str = "auto"
    variables: Mapping[str, Any] = field(default_factory=dict)
    max_length: int | None = None

    @classmethod
    def read(cls, folder: Path) -> CrossEncoderFiles:
        """Read the files of a folder.

        Raises:
            UnsupportedModelError: they are damaged, or ask for something that only sentence-transformers does.
        """
        path = folder / "modules.json"
        if not is_listed(path):
            if is_listed(stray := folder / "1_LogitScore"):
                raise UnsupportedModelError(
                    f"{folder} has {stray.name}, and no modules.json that says to use it, so sentence-transformers "
                    f"ignores it: download {path.name}, or remove {stray.name}"
                )
            return cls()
        kinds = _modules(path)
        labels = _labels(folder / kinds[1][1] / "config.json") if len(kinds) == 2 else None
        file = folder / "config_sentence_transformers.json"
        said = _checked(file, read_json(file), _MODEL)
        if "model_type" not in said:
            raise UnsupportedModelError(
                f"{file} has no model_type, so sentence-transformers ignores the modules: write 'CrossEncoder', or "
                "download the file again"
            )
        return cls(True, labels, _default_prompt(file, said), *_transformer_module(folder))


def _checked(
    path: Path, said: Mapping[str, Any], known: Mapping[str, tuple[object, ...] | None], prefix: str = ""
) -> Mapping[str, Any]:
    """The settings of a file, if each is known.

    Raises:
        UnsupportedModelError: one is unknown, or has a value that is.
    """
    for name, value in said.items():
        values = known.get(name, ())
        # true equals 1 in Python.
        if values is not None and not any(value == each and type(value) is type(each) for each in values):
            raise UnsupportedModelError(
                f"{path} says {prefix}{name}={shortened(value)}"
                + (f" instead of {' or '.join(map(repr, values))}" if values else "")
                + ", and only sentence-transformers knows what that does to a score: use its CrossEncoder"
                + ("" if values else ", or remove the setting if it has no effect there")
            )
    return said


def _modules(path: Path) -> list[tuple[str, str]]:
    """(class, folder) of each module that modules.json lists: a Transformer, and a LogitScore for labels.

    Raises:
        UnsupportedModelError: there are other modules, or the file is damaged.
    """
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
        _checked(path, module, _MODULE, f"{number}.")
    found = [(module["type"].rpartition(".")[2], module["path"]) for module in listed]
    for (kind, _), module in zip(found, listed, strict=True):
        if kind in _OF_EMBEDDINGS:
            raise UnsupportedModelError(
                f"{path.parent} is an embedding model: its modules.json lists {kind}; use the reranker of its series, "
                "such as Qwen/Qwen3-Reranker-0.6B"
            )
        if kind not in ("Transformer", "LogitScore") or not module["type"].startswith(_PACKAGE):
            raise UnsupportedModelError(
                f"{path} lists a module {module['type']}, and only sentence-transformers, or the package that it is "
                "from, knows what it does to a score: use sentence-transformers' CrossEncoder"
            )
    kinds = [kind for kind, _ in found]
    if kinds not in ([], ["Transformer"], ["Transformer", "LogitScore"]) or len(
        {each.get("name") for each in listed}
    ) < len(listed):
        raise UnsupportedModelError(
            f"{path} lists {', '.join(kinds)}, and this package scores a Transformer with one LogitScore after it, "
            "each with a name of its own: use sentence-transformers' CrossEncoder"
        )
    if found and (place := found[0][1].rstrip("/")):
        raise UnsupportedModelError(
            f"{path} says that the model is in the folder {place}: move the files of {path.parent / place} to "
            f'{path.parent}, and write "path": "" for the Transformer, which CrossEncoder reads as well'
        )
    return found


def check_place_of_model(folder: Path) -> None:
    """Make sure that a folder's modules.json does not name another folder for the model.

    Raises:
        UnsupportedModelError: it does, or it is damaged.
    """
    if is_listed(folder / "modules.json"):
        _modules(folder / "modules.json")


def _is_inside(place: str) -> bool:
    return not Path(place).is_absolute() and ".." not in Path(place).parts


def _labels(path: Path) -> tuple[int, int | None]:
    said = _checked(path, read_json(path), _LOGIT_SCORE)
    true_id, false_id = said.get("true_token_id"), said.get("false_token_id")
    # true is a number in Python, and a negative number would count from the end of the vocabulary.
    if type(true_id) is int and true_id >= 0 and (false_id is None or (type(false_id) is int and false_id >= 0)):
        return true_id, false_id
    raise UnsupportedModelError(
        f"{path} says true_token_id={true_id!r} and false_token_id={false_id!r}, which are not token ids; download it "
        "again"
    )


def _transformer_module(folder: Path) -> tuple[str, Mapping[str, Any], int | None]:
    """`message_format`, `variables` and `max_length` of sentence_bert_config.json, which describes the Transformer."""
    path = folder / "sentence_bert_config.json"
    said = _checked(path, read_json(path), _TRANSFORMER)
    modalities = said.get("modality_config")
    message = modalities.get("message") if isinstance(modalities, Mapping) else None
    if not isinstance(message, Mapping):
        raise UnsupportedModelError(
            f"{path} has no 'message' in its modality_config, so sentence-transformers joins query and document "
            "without a prompt: use its CrossEncoder, or add the setting"
        )
    _checked(path, message, _OF_MESSAGE, "modality_config.message.")
    if message.get("format", "auto") not in _FORMATS:
        raise UnsupportedModelError(
            f"{path} says modality_config.message.format={shortened(message['format'])} instead of one of "
            f"{', '.join(_FORMATS)}: download it again, or use sentence-transformers' CrossEncoder"
        )
    processing = said.get("processing_kwargs") or {}
    parts = dict.fromkeys(("chat_template", "text", "common", "audio", "image", "video")) | {"common": ({},)}
    _checked(path, processing, parts, "processing_kwargs.")
    variables, texts = processing.get("chat_template") or {}, processing.get("text") or {}
    for name in sorted(_NO_VARIABLES & variables.keys()):
        _checked(path, {name: variables[name]}, {}, "processing_kwargs.chat_template.")
    _checked(path, texts, _OF_TEXTS, "processing_kwargs.text.")
    return str(message.get("format", "auto")), variables, min(_limits(folder, path, said, texts), default=None)


def _limits(folder: Path, path: Path, said: Mapping[str, Any], texts: Mapping[str, Any]) -> Iterator[int]:
    """What may limit a prompt. The tokenizer's own limit is 10^30 if none was set."""
    file = folder / "tokenizer_config.json"
    tokenizer = read_json(file) if is_listed(file) else {}
    for place, value in (
        (f"{path} says max_seq_length", said.get("max_seq_length")),
        (f"{path} says processing_kwargs.text.max_length", texts.get("max_length")),
        (f"{file} says model_max_length", tokenizer.get("model_max_length")),
    ):
        if value is None:
            continue
        if type(value) not in (int, float) or not value >= 1:
            raise UnsupportedModelError(
                f"{place}={shortened(value)}, which is no number of tokens: write a positive whole number, or remove "
                "the setting"
            )
        yield int(min(value, 2**31))


def _default_prompt(path: Path, said: Mapping[str, Any]) -> str | None:
    name, prompts = said.get("default_prompt_name"), said.get("prompts")
    if name is None:
        return None
    prompt = prompts.get(name) if isinstance(prompts, Mapping) and isinstance(name, str) else None
    if not isinstance(prompt, str):
        raise UnsupportedModelError(
            f"{path} names the default prompt {name!r}, but its prompts have no such name: download it again"
        )
    return prompt or None  # sentence-transformers passes no system message with an empty prompt
