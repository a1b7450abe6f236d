"""The packed engine: every document of every waiting request in one pass, through transformers' layers or our own."""

from ...pip_command import pip_install
from .. import EngineEntry

PACKED = EngineEntry(
    module=f"{__name__}.engine",
    requires=("torch", "transformers"),
    install=pip_install("packed"),
)
