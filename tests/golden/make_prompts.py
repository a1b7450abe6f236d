"""Write tests/golden/prompts.json: token ids of whole prompts, by transformers, not by this package.

    python -m tests.golden.make_prompts [--check TOKENIZER_FOLDER]

Each prompt is put together with plain string concatenation and encoded in one piece by `AutoTokenizer`. With
--check, the ids are computed with an original Qwen3 tokenizer as well and have to be the same.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from transformers import AutoTokenizer

from tests.qwen3_tokenizer import write_qwen3_tokenizer

FILE = Path(__file__).with_name("prompts.json")

JUDGE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
END = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
PRODUCTS = "Rank products by query with category & style match prioritized"

CASES = [
    ("standard", WEB_SEARCH, "What is the capital of China?", "The capital of China is Beijing."),
    ("standard", WEB_SEARCH, "Explain gravity", " Gravity is a force\n\n"),
    ("standard", WEB_SEARCH, "empty", ""),
    ("standard", PRODUCTS, "健身女生T恤短袖", "短袖T恤女夏季新款速干透气健身服"),
    ("standard-hf", WEB_SEARCH, "What is the capital of China?", "The capital of China is Beijing."),
    ("standard-hf", PRODUCTS, "emoji 👩‍👩‍👧 and e\u0301", "\n  two spaces first, مرحبا"),
    ("compact", PRODUCTS, "健身女生T恤短袖", "短袖T恤女夏季新款速干透气健身服"),
    ("compact", WEB_SEARCH, "12345", "don't; it's 3.14159"),
]


def whole_prompt(template: str, instruction: str, query: str, document: str) -> str:
    """The prompt as one string."""
    if template == "compact":
        return (
            f"<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n<Query>: {query}\n<Document>: {document}"
            + END
        )
    separator = {"standard": "\n\n", "standard-hf": "\n"}[template]
    fields = (f"<Instruct>: {instruction}", f"<Query>: {query}", f"<Document>: {document}")
    return JUDGE + separator.join(fields) + END


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", type=Path)
    original = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        write_qwen3_tokenizer(Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder)
    golden = []
    for template, instruction, query, document in CASES:
        prompt = whole_prompt(template, instruction, query, document)
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if original is not None:
            assert ids == AutoTokenizer.from_pretrained(original)(prompt, add_special_tokens=False)["input_ids"]
        golden.append(
            {"template": template, "instruction": instruction, "query": query, "document": document, "ids": ids}
        )
    FILE.write_text("[\n" + ",\n".join(json.dumps(case, ensure_ascii=False) for case in golden) + "\n]\n")


if __name__ == "__main__":
    main()
