"""Qwen3 rerankers for Haystack."""

from .ranker import Qwen3Ranker

__all__ = ["Qwen3Ranker"]
