"""The demonstration: a small corpus with judgements, BM25 in two frameworks, and what reranking changes.

Reading order: `corpus` (what is searched), `searches` (one per framework), `evaluation` (nDCG, MRR), `show` (tables),
`run` (all of it, as `qwen3-ranker demo` prints it). The first needs no framework, nor does the third.
"""

#: How many passages BM25 hands to the reranker: as many as two cores can rerank for all questions of the corpus, in two
#: frameworks, in about a minute.
DEFAULT_CANDIDATES = 10
