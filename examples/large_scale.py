"""The short version of large_scale.ipynb: pairs in a file -> a job that can be killed and run again -> ranked pairs."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from qwen3_ranker_plugins.data.demo import load_demo_corpus
from qwen3_ranker_plugins.offline import RerankJob

corpus = load_demo_corpus()
with tempfile.TemporaryDirectory() as folder:
    pairs = Path(folder, "pairs.jsonl")
    with pairs.open("w", encoding="utf-8") as file:
        for query_id in list(corpus.queries)[:5]:
            for document_id in corpus.qrels[query_id]:
                pair = {"query_id": query_id, "doc_id": document_id, "query": corpus.queries[query_id]}
                file.write(json.dumps(pair | {"document": corpus.documents[document_id].content}) + "\n")

    job = RerankJob(pairs, Path(folder, "ranked.jsonl"), model="bundled:tiny")
    results = job.run()  # killed and run again, it goes on where it was

    print(f"{results.summary.scored} of {results.summary.pairs} pairs scored")
    for pair in results.get_top_documents("q01", top_k=3):
        print(pair.rank, pair.doc_id, f"P(yes) {pair.relevance_score:.2f}, confidence {pair.confidence:.2f}")
