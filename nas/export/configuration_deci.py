"""The configuration of a DeciLM folder, for programs that read config.json through Transformers.

No release of Transformers knows model type "nemotron-nas", and those who run such models read each layer's block as
attributes, so this file is copied beside the weights and named in config.json. It imports only transformers, and works
with its version 4 as with 5.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig


class Attributes(dict[str, Any]):
    """A JSON object whose keys are attributes too; what it does not hold, it does not have."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class DeciConfig(PretrainedConfig):
    """config.json as it stands, with `block_configs[layer].attention` and `.ffn` as attributes."""

    model_type = "nemotron-nas"
    keys_to_ignore_at_inference = ("past_key_values",)

    def __init__(
        self,
        block_configs: Sequence[dict[str, Any]] = (),
        rope_theta: float = 10000.0,
        rope_scaling: dict[str, Any] | None = None,
        **values: Any,
    ) -> None:
        super().__init__(**values)
        self.block_configs = [
            Attributes({slot: Attributes(choice) for slot, choice in block.items()}) for block in block_configs
        ]
        # Readers of today look for the one, those of Transformers 4 for the others.
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
        self.rope_parameters = {**(rope_scaling or {"rope_type": "default"}), "rope_theta": rope_theta}
