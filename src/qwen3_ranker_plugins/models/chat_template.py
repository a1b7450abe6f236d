"""A checkpoint's own chat template -> the text of a template of ours, where it renders a query and a document."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from ..errors import MissingDependencyError, UnsupportedModelError, remedy_of_reading

# Characters of a private use area: they stand in no chat template, and no template changes them.
_QUERY, _DOCUMENT, _INSTRUCTION = "\ue000query\ue001", "\ue000document\ue001", "\ue000instruction\ue001"
_FIELDS = {_QUERY: "{query}", _DOCUMENT: "{document}", _INSTRUCTION: "{instruction}"}


def read_chat_template(folder: Path) -> str | None:
    """The folder's chat template: chat_template.jinja, chat_template.json or tokenizer_config.json; None without one.

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
    """The text of the template that a chat template stands for; None if it drops the query or the document.

    sentence-transformers hands a pair over as one message with the role `query` and one with the role `document`,
    and its prompt, which is the instruction, as a `system` message in front.

    Raises:
        UnsupportedModelError: the chat template cannot be rendered, or puts the document before the query.
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
            raise UnsupportedModelError("its chat template repeats the query, the document or the instruction")
    if text.index(_DOCUMENT) < max(text.index(_QUERY), text.find(_INSTRUCTION)):
        raise UnsupportedModelError(
            "its chat template puts the document before the query, so that the documents of a query share no prefix "
            "that could be computed once; use the library that the model's card names"
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

    # As transformers compiles chat templates: blocks trimmed, loop controls, and a sandbox, since the text is foreign.
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
