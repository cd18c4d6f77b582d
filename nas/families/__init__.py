"""Parent families as data, and reading one layer of a parent at a time."""

from inlay.nas.families.family import FAMILIES, Family
from inlay.nas.families.gguf import GgufFile
from inlay.nas.families.parent import Parent, describe_hub_parent, open_parent
from inlay.nas.families.shape import Entry, Shape, ends_tensors, layer_prefix, subblock_tensors
from inlay.nas.families.source import described, open_source, unpacked
from inlay.nas.modeling.subblock_inlay import Slot

__all__ = [
    "FAMILIES",
    "Entry",
    "Family",
    "GgufFile",
    "Parent",
    "Shape",
    "Slot",
    "describe_hub_parent",
    "described",
    "ends_tensors",
    "layer_prefix",
    "open_parent",
    "open_source",
    "subblock_tensors",
    "unpacked",
]
