"""Rerankers that judge a document by the logits of label tokens: their prompts, their labels, and the sources of both.

A family has the values that its checkpoints may leave out. `spec_reader.py` reads what a checkpoint states itself, and
`family_choice.py` chooses the family. To add a related model, if its prompt puts the query before the document, add a
`Family` here.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..prompt.template import DEFAULT_INSTRUCTION, JUDGE, TEMPLATES

# The prompt of zeroentropy/zerank-2, from its model card: the query is the system turn, and the document is the user's
# turn. The vendor's guide to prompting puts an instruction after the query, each in tags.
_ZERANK = "<|im_start|>system\n{query}<|im_end|>\n<|im_start|>user\n{{document}}<|im_end|>\n<|im_start|>assistant\n"
# The prompt of the package mxbai-rerank, which encodes each of its parts on its own; {|} separates the parts.
_MXBAI = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n{{|}}{query}{{|}}\n{{|}}document: {{document}}{{|}}\n{{|}}You are a search relevance expert who "
    "evaluates how well documents match search queries. For each query-document pair, carefully analyze the semantic "
    "relationship between them, then provide your binary relevance judgment (0 for not relevant, 1 for relevant).\n"
    "Relevance:{{|}}<|im_end|>\n<|im_start|>assistant\n"
)
_QWEN3_VL = (
    f"<|im_start|>system\n{JUDGE}<|im_end|>\n<|im_start|>user\n<Instruct>: {{instruction}}<Query>:{{query}}\n"
    "<Document>:{document}<|im_end|>\n<|im_start|>assistant\n"
)


@dataclass(frozen=True)
class Family:
    """A kind of reranker.

    Attributes:
        name: as in `ModelSpec.family`.
        template: text of the prompt with an instruction, see `prompt.Template`.
        template_without_instruction: text of the prompt without one; None if the prompt always has an instruction.
        instruction: the default instruction; None if the model is used without one.
        positive, negative: the label tokens; `negative` is None if only one logit is read.
        divisor: the logit, or the difference of two, is divided by this to become a margin.
        source: where the template and the formula come from.
        empty_document: takes the place of a document without text in the prompt.
        architecture: how the class in `architectures` of its published models begins.
        word: what names of its models hold, in lower case; "" if its models are not known by their names.
        published: pattern with which the names of its published models begin.
    """

    name: str
    template: str
    template_without_instruction: str | None
    instruction: str | None
    positive: str
    negative: str | None
    divisor: float
    source: str
    empty_document: str = ""
    architecture: str = "Qwen3"
    word: str = ""
    published: str = ""


QWEN3_RERANKER = Family(
    name="qwen3-reranker",
    template=TEMPLATES["standard"],
    template_without_instruction=None,
    instruction=DEFAULT_INSTRUCTION,
    positive="yes",
    negative="no",
    divisor=1.0,
    source="model card of Qwen/Qwen3-Reranker-0.6B",
    published=r"qwen3-reranker-[\d.]+b",
)

ZERANK = Family(
    name="zerank",
    template=_ZERANK.format(query="<query> {query} </query>\n<instruction> {instruction} </instruction>"),
    template_without_instruction=_ZERANK.format(query="{query}"),
    instruction=None,
    positive="Yes",
    negative=None,
    divisor=5.0,
    source="model card of zeroentropy/zerank-2: sigmoid of the logit of 'Yes' divided by 5",
    word="zerank",
    published=r"zerank-\d",
)

MXBAI_RERANK_V2 = Family(
    name="mxbai-rerank-v2",
    template=_MXBAI.format(query="instruction: {instruction}\nquery: {query}"),
    template_without_instruction=_MXBAI.format(query="query: {query}"),
    instruction=None,
    positive="1",
    negative="0",
    divisor=1.0,
    source="mxbai_rerank.MxbaiRerankV2 of the package mxbai-rerank",
    architecture="Qwen2",
    word="mxbai-rerank",
    published=r"mxbai-rerank-\w+-v2",
)

QWEN3_VL_RERANKER = Family(
    name="qwen3-vl-reranker",
    template=_QWEN3_VL,
    template_without_instruction=None,
    instruction="Given a search query, retrieve relevant candidates that answer the query.",
    positive="yes",
    negative="no",
    divisor=1.0,
    source="scripts/qwen3_vl_reranker.py of Qwen/Qwen3-VL-Reranker-2B",
    empty_document="NULL",
)

FAMILIES = (QWEN3_RERANKER, ZERANK, MXBAI_RERANK_V2, QWEN3_VL_RERANKER)
