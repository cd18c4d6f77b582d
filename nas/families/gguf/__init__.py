"""Parents in GGUF files, llama.cpp's format: read without it, unpacked into model folders."""

from inlay.nas.families.gguf.file import GgufFile, is_gguf, open_gguf
from inlay.nas.families.gguf.header import gguf_package

__all__ = ["GgufFile", "gguf_package", "is_gguf", "open_gguf"]
