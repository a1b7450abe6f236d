"""What reranking does to the order, query by query."""
