"""Texts to token ids: templates, the tokenizer, and the encoder that puts them together."""

from .beginning import SLICE, encode_beginnings
from .encoder import EncodedRequest, Encoder, PromptEncoder, length_order
from .pieces import Piece
from .template import DEFAULT_INSTRUCTION, DEFAULT_MAX_LENGTH, TEMPLATES, Template
from .tokenizer import ModelTokenizer, as_utf8, load_tokenizer

__all__ = [
    "DEFAULT_INSTRUCTION",
    "DEFAULT_MAX_LENGTH",
    "SLICE",
    "TEMPLATES",
    "EncodedRequest",
    "Encoder",
    "ModelTokenizer",
    "Piece",
    "PromptEncoder",
    "Template",
    "as_utf8",
    "encode_beginnings",
    "length_order",
    "load_tokenizer",
]
