"""Renders a chat template with texts that it may only insert, so that one rendering tells the prompt of every text.

A template is a program. It may change a text, or choose what it writes by a text's words or length, and no number of
examples would show that. So texts are rendered as `InsertedText`: a string that can be written and joined with others,
and refuses everything else.

This module needs jinja2, which is imported only for a checkpoint with a chat template for pairs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import test_sequence

from ..errors import UnsupportedModelError

#: Filters that pass on a text, or elements of a list of texts, or look only at the list.
_PASSING = {
    "d", "default", "string", "first", "last", "length", "count", "list", "items", "reverse",
    "map", "select", "selectattr", "reject", "rejectattr",
}  # fmt: skip
# What Python needs of any object.
_NEEDED = {
    "__class__", "__delattr__", "__dir__", "__doc__", "__getattribute__", "__getnewargs__", "__init__",
    "__init_subclass__", "__new__", "__reduce__", "__reduce_ex__", "__setattr__", "__sizeof__", "__subclasshook__",
}  # fmt: skip


class DependsOnTextError(Exception):
    """A template does something else with a text than to insert it."""


def _refuse(*_arguments: object, **_named: object) -> NoReturn:
    raise DependsOnTextError


class InsertedText(str):
    """A text that a template may insert, join with others, and ask whether it is empty.

    Raises:
        DependsOnTextError: the template does anything else with it.
    """

    __slots__ = ()
    __hash__ = _refuse
    __rmod__ = __rmul__ = _refuse

    def __str__(self) -> str:
        return self

    def __bool__(self) -> bool:
        return str.__len__(self) > 0

    def __eq__(self, other: object) -> bool:
        if other is self or not isinstance(other, str):
            return other is self
        return _refuse() if str.__len__(other) else not self

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __add__(self, other: str) -> str:
        return _joined((self, other))

    def __radd__(self, other: str) -> str:
        return _joined((other, self))

    def __iter__(self) -> Iterator[str]:  # only the first step raises, because the test `iterable` asks for an iterator
        yield _refuse()


for _name in set(dir(str)) - _NEEDED - set(vars(InsertedText)):
    setattr(InsertedText, _name, _refuse)


def _joined(parts: Iterable[str]) -> str:
    parts = list(parts)
    text = "".join(parts)
    return InsertedText(text) if any(isinstance(each, InsertedText) for each in parts) else text


def _has_text(value: object) -> bool:
    """Whether a value is an inserted text or a collection of such."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(_has_text(each) for each in value)
    return isinstance(value, InsertedText)


class _Generator(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:  # noqa: N802 - jinja2 calls it by this name
        self.write("concat(map(str, (")
        for each in node.nodes:
            self.visit(each, frame)
            self.write(", ")
        self.write(")))")


class _Generation(Extension):
    """`{% generation %}`, which marks a part of the prompt for training."""

    tags = {"generation"}  # noqa: RUF012 - as the base class declares it

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class _Environment(ImmutableSandboxedEnvironment):
    """jinja2 as transformers sets it up: trimmed blocks, loop controls, and a sandbox for text of unknown origin."""

    code_generator_class = _Generator
    concat = staticmethod(_joined)
    intercepted_binops = frozenset("%")

    def __init__(self, now: str) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"], autoescape=False
        )
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": lambda _: InsertedText(now)}
        for name, function in self.filters.items():
            if name not in _PASSING:
                self.filters[name] = _without_texts(function)
        self.filters["join"] = _between
        self.tests["sequence"] = _is_sequence
        # Their results differ from call to call.
        del self.globals["lipsum"], self.filters["random"]

    def getattr(self, obj: Any, attribute: str) -> Any:
        return _refuse() if isinstance(obj, InsertedText) else super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        return _refuse() if isinstance(obj, InsertedText) else super().getitem(obj, argument)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        return _refuse() if _has_text((left, right)) else super().call_binop(context, operator, left, right)

    def call(self, context: Any, called: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(getattr(called, "__self__", None), str) and _has_text((args, kwargs)):
            _refuse()  # the method of a text, such as `format`
        return super().call(context, called, *args, **kwargs)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, InsertedText) or test_sequence(value)


def _between(values: Iterable[Any], between: str = "") -> str:
    return _joined([part for value in values for part in (between, str(value))][1:])


def _without_texts(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        return _refuse() if _has_text((args, kwargs)) else function(*args, **kwargs)

    return checked


@functools.lru_cache(maxsize=4)  # a template is rendered three times while a model is read, and compiles in 50 ms
def compile_chat_template(source: str, now: str) -> Callable[..., str]:
    """A function that renders a chat template as transformers does.

    Args:
        source: the text of the template.
        now: what `strftime_now` returns.

    Returns:
        renders the template with the variables that are passed by name. It raises jinja2's TemplateError if the
        template refuses its messages with `raise_exception`, and DependsOnTextError.

    Raises:
        UnsupportedModelError: the template cannot be rendered.
    """
    try:
        template = _Environment(now).from_string(source)
    except Exception as error:  # deep nesting ends in a RecursionError, for example
        raise _unusable(error) from error

    def render(**variables: Any) -> str:
        try:
            return "".join((template.render(**variables),))  # a plain text
        except DependsOnTextError:
            raise
        except Exception as error:  # a template is a program, and raises whatever Python does
            if isinstance(error, TemplateError) and "raise_exception" in source:
                raise
            raise _unusable(error) from error

    return render


def _unusable(error: Exception) -> UnsupportedModelError:
    return UnsupportedModelError(
        "its chat template (chat_template.jinja, or the setting in tokenizer_config.json) cannot be rendered: "
        f"{type(error).__name__}: {error}; download the file again"
    )
