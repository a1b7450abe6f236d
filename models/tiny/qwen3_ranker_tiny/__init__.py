"""The files of `bundled:tiny`, the demonstration model of qwen3-ranker-plugins; this package has no code."""
