"""Texts to token ids: templates, the tokenizer, and the encoder that puts them together."""

from .beginning import SLICE, SUFFIX_CHARACTERS, encode_beginnings, in_groups
from .encoder import EncodedRequest, Encoder, FlatSegments, PromptEncoder, length_order
from .pieces import Piece, sentence_ends
from .template import DEFAULT_INSTRUCTION, DEFAULT_MAX_LENGTH, TEMPLATES, Template
from .tokenizer import ModelTokenizer, as_utf8, load_tokenizer

__all__ = [
    "DEFAULT_INSTRUCTION",
    "DEFAULT_MAX_LENGTH",
    "SLICE",
    "SUFFIX_CHARACTERS",
    "TEMPLATES",
    "EncodedRequest",
    "Encoder",
    "FlatSegments",
    "ModelTokenizer",
    "Piece",
    "PromptEncoder",
    "Template",
    "as_utf8",
    "encode_beginnings",
    "in_groups",
    "length_order",
    "load_tokenizer",
    "sentence_ends",
]
