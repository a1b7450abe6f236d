"""Qwen3 rerankers for LangChain."""

from .compressor import Qwen3Rerank
from .cross_encoder import Qwen3CrossEncoder

__all__ = ["Qwen3CrossEncoder", "Qwen3Rerank"]
