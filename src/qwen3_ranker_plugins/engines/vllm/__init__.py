"""The engines on vLLM, which runs in a worker process of its own."""
