"""The demonstration: a small corpus with judgements, BM25 in two frameworks, and what reranking changes.

Reading order: `searches` (one per framework), `evaluation` (nDCG, MRR), `show` (tables), `run` (all of it, as
`qwen3-ranker demo` prints it). Evaluation needs no framework; the corpus itself is in `data.demo`.
"""
