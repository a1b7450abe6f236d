"""The prompt that a GGUF file states for reranking, tokenizer.chat_template.rerank.

llama.cpp's server replaces {query} and {document} in this text and changes nothing else. Its converter writes the
prompt of Qwen3-Reranker with single line breaks between the fields, where the checkpoint's own prompt has two.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from ..errors import InvalidInputError
from ..model_files import is_listed, read_text
from ..prompt.template import DEFAULT_INSTRUCTION, TEMPLATES, Template
from .spec import ModelSpec

KEY = "tokenizer.chat_template.rerank"
#: Holds the text in the folder that a GGUF file is unpacked into.
FILE = "chat_template_rerank.txt"
_OURS = TEMPLATES["standard"].replace("{instruction}", DEFAULT_INSTRUCTION)
_OF_LLAMA_CPP = TEMPLATES["standard-hf"].replace("{instruction}", DEFAULT_INSTRUCTION)


def as_template(text: str) -> str:
    """llama.cpp's prompt as the text of one of our templates.

    Raises:
        ValueError: a document cannot follow a shared prefix, or other code than llama.cpp's has to fill in a field.
    """
    if others := sorted(set(re.findall(r"\{\w+\}", text)) - {"{query}", "{document}"}):
        raise ValueError(f"it has the field {others[0]}, which llama.cpp does not replace")
    escaped = text.replace("{", "{{").replace("}", "}}")
    template = escaped.replace("{{query}}", "{query}").replace("{{document}}", "{document}")
    try:
        return Template(template).text
    except InvalidInputError as error:
        raise ValueError("it needs {query} once, and {document} once after it") from error


def with_stated_prompt(folder: Path, spec: ModelSpec) -> ModelSpec:
    """The spec with the prompt of the GGUF file that a folder was unpacked from, if the file states one.

    The two standard texts leave Qwen3-Reranker's own prompt in place, so that a GGUF file and the checkpoint that it
    was made from have the same scores.
    """
    if not is_listed(folder / FILE):
        return spec
    template = as_template(read_text(folder / FILE))
    source = f"the file's {KEY}"
    if spec.template == TEMPLATES["standard"] and template in (_OURS, _OF_LLAMA_CPP):
        note = " has the same text"
        if template == _OF_LLAMA_CPP:
            note = ", which is llama.cpp's text of it, has single line breaks"
        return replace(spec, sources=dict(spec.sources) | {"template": f"{spec.sources['template']}; {source}{note}"})
    return replace(
        spec,
        template=template,
        template_without_instruction=template,
        instruction=None,
        sources=dict(spec.sources) | {"template": source, "instruction": source},
    )
