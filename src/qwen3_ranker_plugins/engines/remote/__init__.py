"""The remote engine: sends texts or token ids over HTTP and gets scores. docs/remote.md says what each service gets."""

from ...pip_command import pip_install
from .. import EngineEntry

REMOTE = EngineEntry(
    module=f"{__name__}.engine",
    requires=("httpx", "tenacity"),
    install=pip_install("remote"),
)
