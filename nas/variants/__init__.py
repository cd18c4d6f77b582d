"""The search space: one file a kind of variant, and one registry; importing it does not import torch."""

from inlay.nas.variants.kind import Kind, Place
from inlay.nas.variants.registry import KINDS
from inlay.nas.variants.sizes import ends_parameters, kv_bytes, parameters, weights_bytes, working_parameters
from inlay.nas.variants.space import SearchSpace, ends_forms, space_problems, unseen_problems, variants_of
from inlay.nas.variants.variant import Variant, is_free, parse_variant

__all__ = [
    "KINDS",
    "Kind",
    "Place",
    "SearchSpace",
    "Variant",
    "ends_forms",
    "ends_parameters",
    "is_free",
    "kv_bytes",
    "parameters",
    "parse_variant",
    "space_problems",
    "unseen_problems",
    "variants_of",
    "weights_bytes",
    "working_parameters",
]
