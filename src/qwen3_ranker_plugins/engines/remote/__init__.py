"""The remote engine: text, or token ids, go out over HTTP; scores come back. docs/remote.md says what to whom."""

from ...pip_command import pip_install
from .. import EngineEntry

REMOTE = EngineEntry(
    module=f"{__name__}.engine",
    requires=("httpx", "tenacity"),
    install=pip_install("remote"),
)
