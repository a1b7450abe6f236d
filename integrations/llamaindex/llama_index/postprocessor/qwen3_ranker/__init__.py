"""Qwen3 rerankers for LlamaIndex."""

from .base import Qwen3Rerank

__all__ = ["Qwen3Rerank"]
