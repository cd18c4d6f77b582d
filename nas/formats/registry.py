"""The one list of number formats; a family is its file and a line here."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from inlay.nas.formats.compressed import COMPRESSED
from inlay.nas.formats.format import Format
from inlay.nas.formats.gguf import GGUF

FORMATS: Final[Mapping[str, Format]] = MappingProxyType({**GGUF, **COMPRESSED})
"""Every format by its name."""
