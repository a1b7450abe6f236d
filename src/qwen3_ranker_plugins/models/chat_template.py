"""Turns a checkpoint's chat template into the text of one of our templates, if it renders a query and a document."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from ..errors import MissingDependencyError, UnsupportedModelError
from ..model_files import is_listed, read_text
from .json_files import read_json, shortened

# Characters of a private use area: no chat template contains them or changes them.
_QUERY, _DOCUMENT, _INSTRUCTION = "\ue000query\ue001", "\ue000document\ue001", "\ue000instruction\ue001"
# (query, document, instruction) that a template must leave as they are: white space, markup, and many words.
_PROBES = (
    (" Which \n\n one? ", "\n  <b>Magma</b> & 'x' \"y\" {z}  rises.\n\n", " Find.\nIt "),
    ("word " * 2000, "\u00e9\u4e2d " + "word " * 2000, "word " * 200),
)
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FIELDS = {_QUERY: "{query}", _DOCUMENT: "{document}", _INSTRUCTION: "{instruction}"}


def read_chat_template(folder: Path) -> str | None:
    """The chat template in chat_template.jinja, chat_template.json or tokenizer_config.json; None if there is none.

    Raises:
        UnsupportedModelError: a file is damaged.
    """
    if is_listed(path := folder / "chat_template.jinja"):
        text = read_text(path)
        if "{{" not in text and "{%" not in text:
            raise UnsupportedModelError(f"{path} holds {shortened(text)}, which is no template: download it again")
        return text
    for name in ("chat_template.json", "tokenizer_config.json"):
        if is_listed(path := folder / name):
            found = read_json(path).get("chat_template")
            if isinstance(found, list):  # as transformers 4 wrote several templates
                try:
                    found = {each["name"]: each["template"] for each in found}.get("default")
                except (TypeError, KeyError) as error:
                    raise _no_template(path, found) from error
            if isinstance(found, str):
                return found
            if found is not None:
                raise _no_template(path, found)
    return None


def _no_template(path: Path, found: object) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{path} says chat_template={shortened(found)}, which is neither a text nor a list of templates with names: "
        "download it again"
    )


def read_special_tokens(folder: Path) -> dict[str, str]:
    """The tokens of tokenizer_config.json that transformers passes to a chat template, such as `bos_token`."""
    path = folder / "tokenizer_config.json"
    said = read_json(path) if is_listed(path) else {}
    found = {name: said.get(name) for name in _SPECIAL_TOKENS}
    contents = {name: each.get("content") if isinstance(each, dict) else each for name, each in found.items()}
    return {name: content for name, content in contents.items() if isinstance(content, str)}


def template_of(
    chat_template: str, tokens: Mapping[str, str], *, with_instruction: bool, empty_documents: Collection[str] = ("",)
) -> str | None:
    """A chat template as the text of one of our templates; None if it drops the query, document or instruction.

    sentence-transformers passes a pair as one message with the role `query` and one with the role `document`. If it has
    a prompt, which is the instruction, a `system` message with the prompt precedes them.

    Args:
        chat_template: the text of the template.
        tokens: see `read_special_tokens`.
        with_instruction: whether there is a `system` message.
        empty_documents: what may take the place of a document without text.

    Raises:
        UnsupportedModelError: the chat template cannot be rendered, changes or repeats a field, or puts the document
            before the query.
        MissingDependencyError: jinja2 is not installed.
    """
    render, constants = _compiled(chat_template)

    def rendered(query: str, document: str, instruction: str) -> str:
        messages = [{"role": "query", "content": query}, {"role": "document", "content": document}]
        if with_instruction:
            messages.insert(0, {"role": "system", "content": instruction})
        return render(messages, tokens)

    text = rendered(_QUERY, _DOCUMENT, _INSTRUCTION)
    fields = (_QUERY, _DOCUMENT, _INSTRUCTION) if with_instruction else (_QUERY, _DOCUMENT)
    if missing := [place for place, field in enumerate(fields) if field not in text]:
        # A text that is missing in the prompt was left out, unless another text in its place changes the prompt.
        for place in missing:
            values = [_QUERY, _DOCUMENT, _INSTRUCTION]
            values[place] = _PROBES[0][place]
            if rendered(*values) != text:
                raise _changed()
        return None
    _check_order(text)

    def expected(query: str, document: str, instruction: str) -> str:
        return text.replace(_INSTRUCTION, instruction).replace(_QUERY, query).replace(_DOCUMENT, document)

    # The template may look for a text that it contains.
    probes = [*_PROBES, *((each, each, each) for each in constants)]
    if any(rendered(*probe) != expected(*probe) for probe in probes):
        raise _changed()
    if rendered("q", "", "i") not in [expected("q", each, "i") for each in empty_documents]:
        raise _changed()
    text = text.replace("{", "{{").replace("}", "}}")
    for sentinel, field in _FIELDS.items():
        text = text.replace(sentinel, field)
    return text


def _check_order(text: str) -> None:
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


def _changed() -> UnsupportedModelError:
    return UnsupportedModelError(
        "its chat template changes the query, the document or the instruction, for example by a filter such as trim, "
        "and only sentence-transformers renders it for each pair: use its CrossEncoder"
    )


def _compiled(chat_template: str) -> tuple[Callable[..., str], list[str]]:
    """(renders messages, the texts that the template itself contains)."""
    try:
        from jinja2 import TemplateError, nodes
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

    def unusable(error: TemplateError) -> UnsupportedModelError:
        return UnsupportedModelError(
            "its chat template (chat_template.jinja, or the setting in tokenizer_config.json) cannot be rendered: "
            f"{error}; download the file again"
        )

    try:
        template = environment.from_string(chat_template)
        constants = [node.value for node in environment.parse(chat_template).find_all(nodes.Const)]
    except TemplateError as error:
        raise unusable(error) from error

    def render(messages: Sequence[dict[str, str]], tokens: Mapping[str, str]) -> str:
        try:
            return template.render(messages=messages, add_generation_prompt=True, **tokens)
        except TemplateError as error:
            # A template for chats may refuse the roles of a reranker.
            if "raise_exception" in chat_template:
                return ""
            raise unusable(error) from error

    return render, sorted({each for each in constants if isinstance(each, str) and each})
