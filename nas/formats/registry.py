"""The one list of number formats; a family is its file and a line here."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from inlay.nas.formats.compressed import COMPRESSED
from inlay.nas.formats.format import Format
from inlay.nas.formats.gguf import GGUF
from inlay.nas.formats.sparse import SPARSE

FORMATS: Final[Mapping[str, Format]] = MappingProxyType({**GGUF, **COMPRESSED, **SPARSE})
"""Every format by its name."""
