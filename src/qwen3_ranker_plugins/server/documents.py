"""Turns the documents of a request, which are strings or objects, into the texts that are judged."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..documents import TEXT, DocumentFormat
from .errors import ApiError
from .fields import DocumentObject, StructuredRequest
from .settings import ServerSettings
from .shapes import Exchange

Documents = Sequence[str | DocumentObject]

_LONGEST_NAME = 60


async def judged_texts(exchange: Exchange, documents: Documents, body: StructuredRequest) -> list[str]:
    """The text of each document that the model reads.

    Adds a warning to the exchange for each requested field that no document has.

    Raises:
        ApiError: 422, a document has none of the judged fields.
        InvalidInputError: the fields or the template are unusable.
    """
    form = document_format(exchange.state.settings, body)
    asks_for_others = (body.rank_fields or body.document_template) and form.fields and TEXT not in form.fields
    texts = [each for each in documents if isinstance(each, str)]
    if not asks_for_others and len(texts) == len(documents):
        return texts
    # In a thread, because writing a megabyte of YAML takes a tenth of a second.
    texts, unseen = await asyncio.to_thread(_join, form, documents, asks_for_others=bool(asks_for_others))
    exchange.warnings += [f"no document has the field {name[:_LONGEST_NAME]!r}" for name in unseen]
    return texts


def returns_judged_text(exchange: Exchange, body: StructuredRequest) -> bool:
    """Whether results contain the judged text."""
    wanted = body.return_judged_text
    return exchange.state.settings.return_judged_text if wanted is None else wanted


def document_format(settings: ServerSettings, body: StructuredRequest) -> DocumentFormat:
    """The format that the request asks for; the settings fill in what it leaves out.

    Fields in the request replace a configured template text, and a template text in the request replaces configured
    fields.

    Raises:
        InvalidInputError: the request's fields or its template are unusable.
    """
    fields, template = body.rank_fields, body.document_template
    if fields is None and template is None:
        return settings.document_format
    if template is None and settings.document_template in ("yaml", "lines"):
        template = settings.document_template
    if fields is None and template in ("yaml", "lines"):
        fields = None if settings.rank_fields is None else list(settings.rank_fields)
    return DocumentFormat(fields, template)


def _join(form: DocumentFormat, documents: Documents, *, asks_for_others: bool) -> tuple[list[str], list[str]]:
    """Returns (texts, requested fields that no document has)."""
    texts, objects = [], []
    for index, document in enumerate(documents):
        if isinstance(document, DocumentObject):
            fields = document.fields
            objects.append(fields)
            text = form.text(fields, place=f"documents.{index}")
        else:
            text = None if asks_for_others else document
        if text is None:
            fault = "has none of the judged fields; add the field text, or name its fields in rank_fields or "
            fault += "document_template"
            if isinstance(document, str):
                fault = "is a string, which counts as the field text, and rank_fields or document_template names others"
            elif asks_for_others:
                fault = "has none of the fields that rank_fields or document_template names; give it one with a value"
            elif not document.fields:
                fault = "has no fields"
            place = f"documents.{index}"
            raise ApiError(422, "invalid_request", f"{place}: {fault}", param=place)
        texts.append(text)
    if len(objects) < len(documents):
        objects.append({TEXT: ""})  # a string counts as the field text
    return texts, form.unseen(objects)
