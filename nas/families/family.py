"""The parent families as data: what a `config.json` of each means, without importing Transformers.

A family says how to read its config: the defaults of its Transformers config class for keys that the file leaves out,
which projections carry a bias, whether queries and keys are normed, and which layers slide. Reading it here keeps
`validate` and `plan` free of torch; a test holds this table against Transformers' own classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal


@dataclass(frozen=True)
class Family:
    """One model family; a bias field is `True`, `False`, or the config key that decides."""

    name: str
    """Its `model_type` in config.json."""
    defaults: Mapping[str, Any]
    """Values of the family's config class for keys that config.json leaves out."""
    qkv_bias: bool | str = False
    """Whether the query, key and value projections have a bias."""
    o_bias: bool | str = False
    """Whether the output projection of attention has a bias."""
    mlp_bias: bool | str = False
    """Whether the three projections of the ffn have a bias."""
    qk_norm: bool = False
    """Whether each head of queries and keys is normed before the rotation."""
    sliding: Literal["none", "all", "used", "by_layer"] = "none"
    """`all`: every layer takes `sliding_window`; `used`: where `use_sliding_window` says so; `by_layer`: it and
    `layer_types` choose."""
    stored: tuple[tuple[str, str], ...] = ()
    """What parts of a tensor's name are called in its files, where that is otherwise than here."""
    foreign_keys: tuple[str, ...] = ()
    """Config keys whose presence makes Transformers take the model for one of another family."""
    hidden_multiple_of_heads: bool = False
    """Whether its config class refuses a hidden size that the heads do not divide."""

    def name_of(self, stored: str) -> str:
        """What a tensor of its files is called here."""
        for ours, theirs in self.stored:
            stored = stored.replace(theirs, ours)
        return stored


def _defaults(**changed: Any) -> Mapping[str, Any]:
    common = {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "head_dim": None,
        "tie_word_embeddings": False,
    }
    return MappingProxyType(common | changed)


_QWEN: Final = {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}

LLAMA: Final = Family(
    "llama",
    _defaults(
        intermediate_size=11008,
        num_key_value_heads=None,
        max_position_embeddings=2048,
        attention_bias=False,
        mlp_bias=False,
    ),
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    mlp_bias="mlp_bias",
    hidden_multiple_of_heads=True,
)
MISTRAL: Final = Family(
    "mistral",
    _defaults(intermediate_size=14336, num_key_value_heads=8, max_position_embeddings=131072, sliding_window=4096),
    sliding="all",
    foreign_keys=("layer_types",),
)
QWEN2: Final = Family("qwen2", _defaults(**_QWEN), qkv_bias=True, sliding="by_layer")
QWEN3: Final = Family(
    "qwen3",
    _defaults(**_QWEN, head_dim=128, attention_bias=False),
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    qk_norm=True,
    sliding="by_layer",
)
MIXTRAL: Final = Family(
    "mixtral",
    _defaults(
        intermediate_size=14336,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        sliding_window=None,
        num_local_experts=8,
        num_experts_per_tok=2,
    ),
    sliding="all",
    stored=(
        ("mlp.gate.", "block_sparse_moe.gate."),
        ("mlp.experts.", "block_sparse_moe.experts."),
        (".gate_proj.", ".w1."),
        (".down_proj.", ".w2."),
        (".up_proj.", ".w3."),
    ),
)
QWEN3_MOE: Final = Family(
    "qwen3_moe",
    _defaults(
        vocab_size=151936,
        hidden_size=2048,
        num_hidden_layers=24,
        intermediate_size=6144,
        num_key_value_heads=4,
        max_position_embeddings=32768,
        attention_bias=False,
        use_sliding_window=False,
        sliding_window=4096,
        decoder_sparse_step=1,
        moe_intermediate_size=768,
        num_experts_per_tok=8,
        num_experts=128,
        mlp_only_layers=None,
    ),
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    qk_norm=True,
    sliding="used",
)

FAMILIES: Final[Mapping[str, Family]] = MappingProxyType(
    {family.name: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3, MIXTRAL, QWEN3_MOE)}
)
"""Every supported family by its `model_type`, in the order messages list them."""

CHILD: Final = "inlay"
"""The `model_type` of an exported child. It is a parent like any other: its modules are those of the family that its
config.json names, its layers what its `blocks` say."""
