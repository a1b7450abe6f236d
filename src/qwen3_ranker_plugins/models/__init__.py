"""From a model's name to a local folder, and from the folder to how it judges a document."""

from .encoders import make_encoder
from .resolve import Checkpoint, modified_ns, resolve_checkpoint, resolve_model, resolve_tokenizer
from .spec import ModelSpec, Scoring, read_spec

__all__ = [
    "Checkpoint",
    "ModelSpec",
    "Scoring",
    "make_encoder",
    "modified_ns",
    "read_spec",
    "resolve_checkpoint",
    "resolve_model",
    "resolve_tokenizer",
]
