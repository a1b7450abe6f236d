"""From a model's name to a local folder, and from the folder to how the model judges a document."""

from .encoders import make_encoder
from .fingerprint import judgement_facts, model_hash, prompt_facts
from .resolve import Checkpoint, resolve_checkpoint, resolve_model, resolve_tokenizer
from .spec import ModelSpec, Scoring
from .spec_reader import read_spec

__all__ = [
    "Checkpoint",
    "ModelSpec",
    "Scoring",
    "judgement_facts",
    "make_encoder",
    "model_hash",
    "prompt_facts",
    "read_spec",
    "resolve_checkpoint",
    "resolve_model",
    "resolve_tokenizer",
]
