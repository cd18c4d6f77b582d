"""GGUF files for llama.cpp."""

from inlay.nas.engines.gguf.fields import Field, add_fields
from inlay.nas.engines.gguf.tokenizer import tokenizer_metadata

__all__ = ["Field", "add_fields", "tokenizer_metadata"]
