"""The training recipe of the bundled tiny reranker; see README.md in this folder."""
