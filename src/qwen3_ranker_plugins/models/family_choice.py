"""Which family of rerankers a checkpoint belongs to, by the strongest evidence that its folder and the user give.

A name alone decides only if it is that of a published model. The folder of a fine-tune may name the model from which it
learned, whose prompt and labels it need not share.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePath

from ..errors import UnsupportedModelError
from .chat_template import ChatTemplate
from .families import FAMILIES, MXBAI_RERANK_V2, QWEN3_RERANKER, QWEN3_VL_RERANKER, Family
from .json_files import read_json
from .score_head import family_of_head
from .spec import Scoring

#: A reranker whose prompt puts the document first, by its name.
_DOCUMENT_FIRST = "ctxl-rerank"


def choose_family(
    folder: Path,
    name: str,
    architecture: str,
    labels: tuple[int, int | None] | None,
    chat: ChatTemplate | None,
    given: Scoring | None,
    *,
    has_template: bool,
) -> tuple[Family, str]:
    """(the family whose defaults apply, what says so).

    Args:
        folder: with the weights.
        name: what the user called the model.
        architecture: the class in `architectures`.
        labels: ids of the label tokens that sentence-transformers' files name; None for none.
        chat: the chat template, if it is for a query and a document.
        given: `scoring=` of the user.
        has_template: whether the user gave the prompt.

    Raises:
        UnsupportedModelError: the evidence is contradictory or missing; the message says what to give.
    """
    empty = {each.empty_document for each in FAMILIES}
    prompt = None if chat is None else chat.as_template(with_instruction=False, empty_documents=empty)
    for family in FAMILIES:
        if prompt is not None and prompt in (family.template, family.template_without_instruction):
            return family, f"its chat template is that of {family.name}"
    if architecture.startswith("Qwen3VL"):
        return QWEN3_VL_RERANKER, "config.json: architecture"
    if architecture.endswith("ForSequenceClassification") and (found := family_of_head(folder)) is not None:
        return found, "its score head is made of the label rows of its embeddings"
    called = list(_names(folder, name))
    _refuse_document_first(folder, called, architecture, given)
    for family in FAMILIES:
        if family.word and any(family.word in each for each in called):
            why = _why_named(folder, family, called, architecture, labels, given, has_prompt=chat is not None)
            if why is not None:
                return family, why
    says_prompt = "the prompt that was given" if has_template else "its chat template" if chat is not None else None
    return _family_of_architecture(folder, called, architecture, labels, given, says_prompt)


def _names(folder: Path, name: str) -> Iterator[str]:
    """The names of a model: the user's, its folder's and its repository's.

    A snapshot of the hub's cache lies in models--OWNER--NAME/snapshots/REVISION. The other folders of a path, such as
    the one in which somebody compares models, say nothing about the model.
    """
    yield PurePath(name).name.lower()
    yield folder.name.lower()
    if folder.parent.name == "snapshots":
        yield folder.parent.parent.name.lower().rpartition("--")[2]


def _refuse_document_first(folder: Path, called: list[str], architecture: str, given: Scoring | None) -> None:
    if any(each.startswith(_DOCUMENT_FIRST) for each in called):
        raise UnsupportedModelError(
            f"{folder}: the prompt of ctxl-rerank puts the document before the query, so the documents of a query "
            "share no prefix; use the library that its model card names"
        )
    if given is None and any(_DOCUMENT_FIRST in each for each in called):
        raise UnsupportedModelError(
            f"{folder}: its name holds {_DOCUMENT_FIRST!r}, whose prompt puts the document before the query; if this "
            f"model was trained on another prompt, give {_scoring_of(QWEN3_RERANKER, architecture)}"
        )


def _why_named(
    folder: Path,
    family: Family,
    called: list[str],
    architecture: str,
    labels: tuple[int, int | None] | None,
    given: Scoring | None,
    *,
    has_prompt: bool,
) -> str | None:
    """Why a model whose name holds the word of a family belongs to it; None if it does not.

    Args:
        folder, architecture, labels, given: as for `choose_family`.
        family: the family.
        called: names of the model.
        has_prompt: whether the chat template is the prompt of a reranker, which is of no known family.

    Raises:
        UnsupportedModelError: only the user knows.
    """
    by_name = f"the model's name, which holds {family.word!r}"
    is_published = any(re.match(family.published, each) for each in called)
    if given is not None and not given.is_score_head:
        if _has_labels(family, given):
            return f"the labels that were given, and {by_name}"
        if _has_labels(QWEN3_RERANKER, given) or not is_published:
            return None
    if labels is not None and not architecture.endswith("ForSequenceClassification"):
        return f"its labels, and {by_name}" if labels == _label_ids(folder, family) else None
    if architecture.startswith("Qwen2"):  # the architecture of no other family
        return by_name if family.architecture == "Qwen2" and not has_prompt else None
    if not architecture.startswith(family.architecture):
        against = f"its config.json says {architecture}, and {family.name} is a {family.architecture}"
    elif has_prompt:
        against = f"its chat template is not that of {family.name}"
    elif not is_published:
        against = "a fine-tune may be called after the model from which it learned"
    else:
        return by_name
    if given is not None:
        divides = given.is_score_head and given.divisor == family.divisor != QWEN3_RERANKER.divisor
        return f"the scoring that was given, and {by_name}" if divides else None
    raise UnsupportedModelError(
        f"{folder}: it is unclear how the model judges, because its name holds {family.word!r}, and {against}: give "
        f"{_scoring_of(family, architecture)} if it judges as {family.name}, and "
        f"{_scoring_of(QWEN3_RERANKER, architecture)} if it judges as a Qwen3-Reranker (template= gives another prompt)"
    )


def _family_of_architecture(
    folder: Path,
    called: list[str],
    architecture: str,
    labels: tuple[int, int | None] | None,
    given: Scoring | None,
    says_prompt: str | None,
) -> tuple[Family, str]:
    """The family of a model whose score head and name say nothing, and whose chat template is of no known family.

    Args:
        folder, architecture, labels, given: as for `choose_family`.
        called: names of the model.
        says_prompt: what says the prompt; None if nothing does.

    Raises:
        UnsupportedModelError: the architecture does not tell either.
    """
    is_classifier = architecture.endswith("ForSequenceClassification")
    family = MXBAI_RERANK_V2 if architecture.startswith("Qwen2") else QWEN3_RERANKER
    if says_prompt is not None and (is_classifier or labels is not None or given is not None):
        return family, f"{architecture}, and {says_prompt}"  # nothing of the family's prompt is used
    if family is MXBAI_RERANK_V2:
        if given is not None and (_has_labels(family, given) or given.is_score_head):
            return family, f"the scoring that was given, and {architecture}"
        missing = (
            "neither a chat template with a query and a document, nor a known name"
            if says_prompt is None
            else (f"{says_prompt} names no labels, and no known name")
        )
        raise UnsupportedModelError(
            f"{folder} holds {architecture} and does not say how it judges a document: {missing} such as "
            f"mxbai-rerank-base-v2 was found; if it is such a model, give {_scoring_of(family, architecture)}"
        )
    if is_classifier and given is None and not any(re.match(family.published, each) for each in called):
        older = (
            "; its config.json has the key 'sentence_transformers', so a CrossEncoder without chat templates saved it, "
            "which gives the model the two texts with no prompt (template='{query}{|}{document}' does the same)"
            if "sentence_transformers" in read_json(folder / "config.json")
            else ""
        )
        raise UnsupportedModelError(
            f"{folder} holds {architecture} and does not say on which prompt it was trained: neither a chat template "
            "with a query and a document, nor a score head made of the rows of 'yes' and 'no', nor a name that begins "
            f"as Qwen3-Reranker-0.6B was found{older}; if it was trained on the prompt of Qwen3-Reranker, give "
            "scoring='score-head', else the text of its prompt as template="
        )
    return family, f"{architecture} with nothing else said"


def _has_labels(family: Family, given: Scoring) -> bool:
    return (given.positive, given.negative) == (family.positive, family.negative)


def _label_ids(folder: Path, family: Family) -> tuple[int | None, int | None]:
    from ..prompt.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    return tokenizer.find(family.positive), None if family.negative is None else tokenizer.find(family.negative)


def _scoring_of(family: Family, architecture: str) -> str:
    """The setting that says that a model judges as those of a family."""
    scoring = Scoring(family.positive, family.negative, family.divisor)
    if architecture.endswith("ForSequenceClassification"):
        scoring = Scoring(None, None, family.divisor)
    return f"scoring={str(scoring)!r}"
