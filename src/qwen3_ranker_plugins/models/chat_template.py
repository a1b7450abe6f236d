"""Turns a checkpoint's chat template into the text of one of our templates, if it renders a query and a document."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from ..errors import MissingDependencyError, UnsupportedModelError, remedy_of_reading

# Characters of a private use area: no chat template contains them or changes them.
_QUERY, _DOCUMENT, _INSTRUCTION = "\ue000query\ue001", "\ue000document\ue001", "\ue000instruction\ue001"
_FIELDS = {_QUERY: "{query}", _DOCUMENT: "{document}", _INSTRUCTION: "{instruction}"}


def read_chat_template(folder: Path) -> str | None:
    """The chat template in chat_template.jinja, chat_template.json or tokenizer_config.json; None if there is none.

    Raises:
        UnsupportedModelError: a file is damaged.
    """
    if (path := folder / "chat_template.jinja").is_file():
        return path.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (path := folder / name).is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
            except (OSError, ValueError, AttributeError) as error:
                raise UnsupportedModelError(f"{path} cannot be read ({error}); {remedy_of_reading(error)}") from error
            if isinstance(found, str):
                return found
    return None


def template_of(chat_template: str, *, with_instruction: bool) -> str | None:
    """A chat template as the text of one of our templates; None if it drops the query, document or instruction.

    sentence-transformers passes a pair as one message with the role `query` and one with the role `document`. If it has
    a prompt, which is the instruction, a `system` message with the prompt precedes them.

    Raises:
        UnsupportedModelError: the chat template cannot be rendered, repeats a field, or puts the document before the
            query.
        MissingDependencyError: jinja2 is not installed.
    """
    messages = [{"role": "query", "content": _QUERY}, {"role": "document", "content": _DOCUMENT}]
    if with_instruction:
        messages.insert(0, {"role": "system", "content": _INSTRUCTION})
    text = _render(chat_template, messages)
    if _QUERY not in text or _DOCUMENT not in text or (with_instruction and _INSTRUCTION not in text):
        return None
    for sentinel in _FIELDS:
        if text.count(sentinel) > 1:
            raise UnsupportedModelError(
                "its chat template repeats the query, the document or the instruction; use the library that the "
                "model's card names"
            )
    if text.index(_DOCUMENT) < max(text.index(_QUERY), text.find(_INSTRUCTION)):
        raise UnsupportedModelError(
            "its chat template puts the document before the query, so the documents of a query share no prefix that "
            "could be computed once; use the library that the model's card names"
        )
    text = text.replace("{", "{{").replace("}", "}}")
    for sentinel, field in _FIELDS.items():
        text = text.replace(sentinel, field)
    return text


def _render(chat_template: str, messages: Iterable[dict[str, str]]) -> str:
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise MissingDependencyError("reading a model's chat template needs jinja2: pip install jinja2") from error

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    # As transformers compiles chat templates: trimmed blocks, loop controls, and a sandbox for text of unknown origin.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], autoescape=False
    )
    environment.globals["raise_exception"] = raise_exception
    try:
        return environment.from_string(chat_template).render(messages=list(messages), add_generation_prompt=True)
    except TemplateError as error:
        # A template for chats may refuse the roles of a reranker.
        if "raise_exception" in chat_template:
            return ""
        raise UnsupportedModelError(f"its chat template cannot be rendered: {error}") from error
