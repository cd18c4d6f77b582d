"""How an engine stores numbers: one file a family of formats, one contract (`format.py`), one list (`registry.py`)."""

from inlay.nas.formats.format import Format
from inlay.nas.formats.registry import FORMATS

__all__ = ["FORMATS", "Format"]
