"""The demonstration: a small corpus with judgements, BM25 in two frameworks, and what reranking changes.

Reading order: `corpus` (what is searched), `searches` (one per framework), `evaluation` (nDCG, MRR), `show` (tables),
`run` (all of it, as `qwen3-ranker demo` prints it). The first needs no framework, nor does the third.
"""

#: How many passages BM25 hands to the reranker. Two cores rerank all questions of the corpus in two frameworks with
#: so many in less than a minute, and a small model gains little from more.
DEFAULT_CANDIDATES = 15
