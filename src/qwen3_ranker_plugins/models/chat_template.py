"""Turns a checkpoint's chat template into the text of one of our templates, if it renders a query and a document."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MissingDependencyError, UnsupportedModelError
from ..model_files import is_listed, read_text
from .cross_encoder_files import CrossEncoderFiles
from .json_files import read_json, shortened
from .tokenizer_settings import GENERAL, read_tokenizer_config

# Characters of a private use area: no chat template contains them or changes them.
_QUERY, _DOCUMENT, _INSTRUCTION = "\ue000query\ue001", "\ue000document\ue001", "\ue000instruction\ue001"
_NOW = "\ue000now\ue001"
_FIELDS = {_QUERY: "{query}", _DOCUMENT: "{document}", _INSTRUCTION: "{instruction}"}
_CHANGES = (
    "changes the query, the document or the instruction, for example by a filter such as trim, or depends on their "
    "words, and only sentence-transformers renders it for each pair: use its CrossEncoder"
)
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Qwen's tokenizer in transformers has these if tokenizer_config.json does not state others.
_DEFAULT_TOKENS = dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")
#: sentence-transformers takes these for signs that a template reads the content of a message as a list.
_READS_A_LIST = ("content[0]", ".type", "'type'", '"type"', "item.type", "message.content[")


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a folder, and what transformers and sentence-transformers pass to it.

    Attributes:
        folder: where it is, for messages.
        text: of the template.
        is_structured: whether the content of a message is a list of parts, [{"type": "text", "text": ...}].
        variables: what it gets besides the messages: special tokens, and what sentence-transformers' files say.
    """

    folder: Path
    text: str
    is_structured: bool
    variables: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path, modules: CrossEncoderFiles, *, has_processor: bool) -> ChatTemplate | None:
        """The chat template of a folder; None if there is none.

        Args:
            folder: of the checkpoint.
            modules: the files of sentence-transformers there.
            has_processor: whether transformers reads the folder with a processor, which images need. A processor and a
                tokenizer look for a template in different files.

        Raises:
            UnsupportedModelError: a file is damaged.
        """
        found = _found(folder, has_processor=has_processor)
        text = found.get("default") if isinstance(found, dict) else found
        if text is None:
            return None
        is_structured = modules.message_format == "structured" or (
            modules.message_format == "auto"
            and (isinstance(found, dict) or any(sign in text for sign in _READS_A_LIST))
        )
        return cls(folder, text, is_structured, _special_tokens(folder) | dict(modules.variables))

    @property
    def is_for_pairs(self) -> bool:
        """Whether it names the roles that sentence-transformers uses for a query and a document."""
        return all(re.search(rf"""['"]{role}['"]""", self.text) for role in ("query", "document"))

    def renders_pairs(self, empty_documents: Collection[str]) -> bool:
        """Whether it renders a query and a document, with an instruction or without one.

        Args:
            empty_documents: as for `as_template`, which raises the same errors.
        """
        return any(
            self.as_template(with_instruction=each, empty_documents=empty_documents) is not None
            for each in (False, True)
        )

    def as_template(self, *, with_instruction: bool, empty_documents: Collection[str] = ("",)) -> str | None:
        """The chat template as the text of one of our templates; None if it drops the query, document or instruction.

        sentence-transformers passes a pair as one message with the role `query` and one with the role `document`. If it
        has a prompt, which is the instruction, a `system` message with the prompt precedes them.

        Args:
            with_instruction: whether there is a `system` message.
            empty_documents: what may take the place of a document without text.

        Raises:
            UnsupportedModelError: the chat template cannot be rendered, changes or repeats a field, depends on its
                words or on the date, or puts the document before the query.
            MissingDependencyError: jinja2 is not installed.
        """
        try:
            from jinja2 import TemplateError

            from .chat_rendering import DependsOnTextError, InsertedText
        except ImportError as error:
            raise MissingDependencyError("reading a model's chat template needs jinja2: pip install jinja2") from error
        render = self._renderer(with_instruction=with_instruction)
        try:
            pair = InsertedText(_QUERY), InsertedText(_DOCUMENT)
            # A template for chats drops the pair, whatever it does with the instruction.
            if any(field not in render(*pair, _INSTRUCTION) for field in (_QUERY, _DOCUMENT)):
                return None
            instruction = InsertedText(_INSTRUCTION)
            text = render(*pair, instruction)
            if with_instruction and _INSTRUCTION not in text:
                return None
            self._check_order(text)
            # Whether a text is empty is all that a template may ask.
            for query, document in ((_QUERY, ""), ("", _DOCUMENT), ("", "")):
                due = {
                    text.replace(_QUERY, query).replace(_DOCUMENT, each)
                    for each in ([document] if document else empty_documents)
                }
                if render(InsertedText(query), InsertedText(document), instruction) not in due:
                    raise self._refused(_CHANGES)
        except TemplateError:  # a template for chats may refuse the roles of a reranker
            return None
        except DependsOnTextError as error:
            raise self._refused(_CHANGES) from error
        text = text.replace("{", "{{").replace("}", "}}")
        for sentinel, name in _FIELDS.items():
            text = text.replace(sentinel, name)
        return text

    def _renderer(self, *, with_instruction: bool) -> Callable[[str, str, str], str]:
        """Renders a query, a document and an instruction."""
        from .chat_rendering import compile_chat_template

        def explained(call: Callable[[], Any]) -> Any:
            try:
                return call()
            except UnsupportedModelError as error:
                raise UnsupportedModelError(f"{self.folder}: {error}") from error

        compiled = explained(lambda: compile_chat_template(self.text, _NOW))

        def render(query: str, document: str, instruction: str) -> str:
            parts = [("system", instruction)] * with_instruction + [("query", query), ("document", document)]
            contents = [
                (role, [{"type": "text", "text": text}] if self.is_structured else text) for role, text in parts
            ]
            messages = [{"role": role, "content": content} for role, content in contents]
            variables = {"add_generation_prompt": False, "tools": None, "documents": None} | dict(self.variables)
            return str(explained(lambda: compiled(**variables | {"messages": messages})))

        return render

    def _check_order(self, text: str) -> None:
        if any(text.count(sentinel) > 1 for sentinel in _FIELDS):
            raise self._refused(
                "repeats the query, the document or the instruction; use the library that the model's card names"
            )
        if text.index(_DOCUMENT) < max(text.index(_QUERY), text.find(_INSTRUCTION)):
            raise self._refused(
                "puts the document before the query, so the documents of a query share no prefix that could be "
                "computed once; use the library that the model's card names"
            )
        if _NOW in text:
            raise self._refused(
                "writes the date of the call (strftime_now), so a score would differ from day to day: write the date "
                "of the model's training in its place"
            )

    def _refused(self, why: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self.folder}: its chat template {why}")


def _found(folder: Path, *, has_processor: bool) -> str | dict[str, str] | None:
    """The template as transformers finds it: a text, or several by name, of which "default" is used; None for none."""
    for name in ("processor_config.json", "chat_template.json") if has_processor else ():
        if (found := _in_json(folder / name)) is not None:
            return found
    named: dict[str, str] = {}
    for path in [folder / "chat_template.jinja", *sorted((folder / "additional_chat_templates").glob("*.jinja"))]:
        if is_listed(path):
            text = read_text(path)
            if "{{" not in text and "{%" not in text:
                raise UnsupportedModelError(f"{path} holds {shortened(text)}, which is no template: download it again")
            named["default" if path.parent == folder else path.stem] = text
    if named:
        return named["default"] if named.keys() == {"default"} else named
    return _in_json(folder / "tokenizer_config.json")


def _in_json(path: Path) -> str | dict[str, str] | None:
    found = read_json(path).get("chat_template") if is_listed(path) else None
    if found is None or isinstance(found, str):
        return found
    try:
        named = {each["name"]: each["template"] for each in found}  # as transformers 4 wrote several templates
    except (TypeError, KeyError):
        named = {"default": None}
    if not all(isinstance(each, str) for each in named.values()):
        raise UnsupportedModelError(
            f"{path} says chat_template={shortened(found)}, which is neither a text nor a list of templates with "
            "names: download it again"
        )
    return named


def _special_tokens(folder: Path) -> dict[str, str]:
    """The tokens that transformers passes to a chat template, such as `bos_token`."""
    said = read_tokenizer_config(folder)
    defaults = {} if said.get("tokenizer_class") in GENERAL else _DEFAULT_TOKENS
    found = {name: said.get(name, defaults.get(name)) for name in _SPECIAL_TOKENS}
    contents = {name: each.get("content") if isinstance(each, dict) else each for name, each in found.items()}
    return {name: content for name, content in contents.items() if isinstance(content, str)}
