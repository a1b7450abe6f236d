"""The official Qwen3-Reranker prompt, cut where a request's shared head ends and its suffix begins."""

from tokenizers import Tokenizer

DEFAULT_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
SYSTEM = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
# A small share of training uses these, so that the score does not hang on one instruction.
OTHER_INSTRUCTIONS = (
    "Given a question, retrieve passages that answer it",
    "Given a search query, find the relevant documents",
    "Given a title, find the text that belongs to it",
    "Retrieve documents relevant to the query",
    "Given a scientific claim, retrieve documents that support or refute it",
    "Given a technical question, retrieve the documentation that helps",
    "给定一个搜索查询，检索回答该查询的相关段落",  # noqa: RUF001
    "判断商品标题是否与搜索词相关",
)


# They ask for the opposite: what answers the query is wanted least.
CONTRADICTIONS = (
    "Given a web search query, retrieve passages that do not answer the query",
    "Find passages that have nothing to do with the query",
    "Given a query, retrieve documents that are irrelevant to it",
    "Retrieve unrelated documents only",
    "Select texts about something other than the query",
)
# The package's other named templates: what precedes the query and what follows it.
COMPACT = ("<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n", "<Query>: ", "\n<Document>:")
HF = (SYSTEM, "<Instruct>: {}\n<Query>: ", "\n<Document>:")


def instruction_line(instruction: str) -> str:
    return f"<Instruct>: {instruction}\n\n<Query>: "


def prompt(query: str, document: str, instruction: str = DEFAULT_INSTRUCTION) -> str:
    return f"{SYSTEM}{instruction_line(instruction)}{query}\n\n<Document>: {document}{SUFFIX}"


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that must exist."""
    found: int | None = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer has no token {token!r}; trim it with training.trim_tokenizer")
    return found


class PromptTokens:
    """Token ids of heads, documents and the suffix, encoded separately.

    `head + document + suffix` equals the ids of the whole prompt as long as the document begins after
    the blank that belongs to its first word, and control tokens inside texts stay plain text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.suffix = tokenizer.encode(SUFFIX).ids
        self._system = tokenizer.encode(SYSTEM).ids
        self._special = tokenizer
        self._plain = Tokenizer.from_str(tokenizer.to_str())
        self._plain.encode_special_tokens = True
        self.ending = self._plain.encode("\n\n<Document>:").ids

    @property
    def prefix(self) -> list[int]:
        """What precedes ` query` under the default instruction."""
        return self._system + self._plain.encode(instruction_line(DEFAULT_INSTRUCTION).rstrip()).ids

    def heads(
        self, queries: list[str], instruction: str = DEFAULT_INSTRUCTION, max_tokens: int = 10_000
    ) -> list[list[int]]:
        """Heads of at most `max_tokens` ids; a longer query loses its end, never the fixed parts."""
        texts = [instruction_line(instruction) + query for query in queries]
        room = max_tokens - len(self._system) - len(self.ending)
        whole = self._plain.encode_batch_fast([text + "\n\n<Document>:" for text in texts])
        return [
            self._system + (ids if len(ids) - len(self.ending) <= room else ids[:room] + self.ending)
            for ids in (encoding.ids for encoding in whole)
        ]

    def other_heads(
        self, queries: list[str], template: tuple[str, str, str], instruction: str, max_tokens: int
    ) -> list[list[int]]:
        """Heads in the template COMPACT or HF; a longer query loses its end."""
        system, before, after = template
        control, _, rest = system.partition("{}")
        first = self._special.encode(control).ids
        if rest:
            first += self._plain.encode(instruction).ids + self._special.encode(rest).ids
        lines = [before.format(instruction) + query + after for query in queries]
        ending = self._plain.encode(after).ids
        room = max_tokens - len(first) - len(ending)
        whole = [encoding.ids for encoding in self._plain.encode_batch_fast(lines)]
        return [first + (ids if len(ids) - len(ending) <= room else ids[:room] + ending) for ids in whole]

    def documents(self, documents: list[str], max_tokens: int = 10_000) -> list[list[int]]:
        """Ids of ` document`, cut at `max_tokens`, without the suffix."""
        return [e.ids[:max_tokens] for e in self._plain.encode_batch_fast([" " + document for document in documents])]
