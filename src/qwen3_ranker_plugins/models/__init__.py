"""From a model's name to a local folder, and from the folder to how it judges a document."""

from .resolve import modified_ns, resolve_model, resolve_tokenizer
from .spec import ModelSpec, Scoring, read_spec

__all__ = ["ModelSpec", "Scoring", "modified_ns", "read_spec", "resolve_model", "resolve_tokenizer"]
