"""The remote engine: text, or token ids, go out over HTTP; scores come back. docs/remote.md says what to whom."""

from .. import EngineEntry

REMOTE = EngineEntry(
    module=f"{__name__}.engine",
    requires=("httpx", "tenacity"),
    install='pip install "qwen3-ranker-plugins[remote]"',
)
