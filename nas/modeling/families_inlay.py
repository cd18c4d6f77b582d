"""The Transformers classes that each family's layers are made of.

This file is copied beside exported weights, so it imports only torch and transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral
from transformers.models.mixtral import modeling_mixtral
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3
from transformers.models.qwen3_moe import modeling_qwen3_moe


@dataclass(frozen=True)
class FamilyModules:
    """The Transformers classes that a family's layers are made of."""

    attention: type[nn.Module]
    mlp: type[nn.Module]
    norm: type[nn.Module]
    rotary: type[nn.Module]


FAMILY_MODULES = {
    "llama": FamilyModules(
        modeling_llama.LlamaAttention,
        modeling_llama.LlamaMLP,
        modeling_llama.LlamaRMSNorm,
        modeling_llama.LlamaRotaryEmbedding,
    ),
    "mistral": FamilyModules(
        modeling_mistral.MistralAttention,
        modeling_mistral.MistralMLP,
        modeling_mistral.MistralRMSNorm,
        modeling_mistral.MistralRotaryEmbedding,
    ),
    "qwen2": FamilyModules(
        modeling_qwen2.Qwen2Attention,
        modeling_qwen2.Qwen2MLP,
        modeling_qwen2.Qwen2RMSNorm,
        modeling_qwen2.Qwen2RotaryEmbedding,
    ),
    "qwen3": FamilyModules(
        modeling_qwen3.Qwen3Attention,
        modeling_qwen3.Qwen3MLP,
        modeling_qwen3.Qwen3RMSNorm,
        modeling_qwen3.Qwen3RotaryEmbedding,
    ),
    "mixtral": FamilyModules(
        modeling_mixtral.MixtralAttention,
        modeling_mistral.MistralMLP,  # an expert by itself, of which Mixtral has only all in one
        modeling_mixtral.MixtralRMSNorm,
        modeling_mixtral.MixtralRotaryEmbedding,
    ),
    "qwen3_moe": FamilyModules(
        modeling_qwen3_moe.Qwen3MoeAttention,
        modeling_qwen3_moe.Qwen3MoeMLP,
        modeling_qwen3_moe.Qwen3MoeRMSNorm,
        modeling_qwen3_moe.Qwen3MoeRotaryEmbedding,
    ),
}
