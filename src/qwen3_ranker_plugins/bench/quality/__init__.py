"""Measures how reranking changes the order of documents, query by query."""
