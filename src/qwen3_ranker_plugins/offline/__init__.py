"""Reranking of files larger than memory, by jobs that survive being killed.

>>> from qwen3_ranker_plugins.offline import RerankJob
>>> results = RerankJob("pairs.jsonl", "ranked.jsonl", model="bundled:tiny").run()
>>> for pair in results.get_top_documents("q1", top_k=10, score_threshold=0.2):
...     print(pair.rank, pair.doc_id, pair.relevance_score)

docs/offline.md describes what a job guarantees.
"""

from .errors import CheckpointError, JobError, JobLockedError, StorageError, TooManyErrorsError
from .job import RerankJob
from .results import RerankedPair, RerankResults, Summary

__all__ = [
    "CheckpointError",
    "JobError",
    "JobLockedError",
    "RerankJob",
    "RerankResults",
    "RerankedPair",
    "StorageError",
    "Summary",
    "TooManyErrorsError",
]
