"""`python -m qwen3_ranker_plugins.cli`."""

from .app import main

main()
