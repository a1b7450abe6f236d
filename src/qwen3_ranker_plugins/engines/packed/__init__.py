"""The packed engine: every document of every waiting request in one pass, through transformers' layers or our own."""

from .. import EngineEntry

PACKED = EngineEntry(
    module=f"{__name__}.engine",
    requires=("torch", "transformers"),
    install='pip install "qwen3-ranker-plugins[packed]"',
)
