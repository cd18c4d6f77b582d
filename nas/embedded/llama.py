"""A plain Llama forward pass, for training the embedded parent on one processor core.

It computes what Transformers' `LlamaForCausalLM` computes, with fewer copies, and its parameters carry the same names.
Shapes: B batch, S sequence, D model width, H query heads, G key/value heads, K head size, V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """The architecture of the embedded parent; the head size is `hidden / heads`."""

    vocabulary: int = 3072
    """Tokens, special ones included; at least 259."""
    hidden: int = 192
    """Model width, a multiple of `heads`; the quotient is even."""
    layers: int = 8
    """Decoder layers, at least 1."""
    heads: int = 8
    """Query heads, a multiple of `kv_heads`."""
    kv_heads: int = 4
    """Key/value heads, at least 1."""
    ffn: int = 512
    """Width of the SwiGLU, at least 1."""
    positions: int = 1024
    """Longest sequence, in tokens."""
    rope_theta: float = 10000.0
    """Base of the rotary angles."""
    epsilon: float = 1e-5
    """Added to the mean square in every norm."""

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads


class Llama(nn.Module):
    """The decoder with tied embeddings. Parameter names are those of `LlamaForCausalLM`."""

    def __init__(self, shape: Shape, seed: int) -> None:
        super().__init__()
        self.shape = shape
        self.model = _Decoder(shape)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            _start(name, parameter, generator)

    def forward(self, tokens_BS: Tensor) -> Tensor:
        """Logits, shape (B, S, V), of the token after each one of `tokens_BS`."""
        hidden_BSD = self.model(tokens_BS)
        return F.linear(hidden_BSD, self.model.embed_tokens.weight)

    def matrices(self) -> frozenset[str]:
        """Names of the layers' matrices: all parameters but the embedding and the norms."""
        return frozenset(name for name, _ in self.named_parameters() if name.endswith("proj.weight"))


class _Decoder(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, shape.epsilon)
        cos_SK, sin_SK = _rotation(shape)
        self.register_buffer("cos_SK", cos_SK, persistent=False)
        self.register_buffer("sin_SK", sin_SK, persistent=False)

    def forward(self, tokens_BS: Tensor) -> Tensor:
        length = tokens_BS.shape[1]
        cos_SK, sin_SK = self.get_buffer("cos_SK")[:length], self.get_buffer("sin_SK")[:length]
        hidden_BSD: Tensor = self.embed_tokens(tokens_BS)
        for layer in self.layers:
            hidden_BSD = layer(hidden_BSD, cos_SK, sin_SK)
        normed_BSD: Tensor = self.norm(hidden_BSD)
        return normed_BSD


class _Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden, shape.epsilon)
        self.self_attn = _Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, shape.epsilon)
        self.mlp = _SwiGLU(shape)

    def forward(self, hidden_BSD: Tensor, cos_SK: Tensor, sin_SK: Tensor) -> Tensor:
        hidden_BSD = hidden_BSD + self.self_attn(self.input_layernorm(hidden_BSD), cos_SK, sin_SK)
        updated_BSD: Tensor = hidden_BSD + self.mlp(self.post_attention_layernorm(hidden_BSD))
        return updated_BSD


class _Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(shape.hidden, shape.heads * shape.head_size, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_size, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_size, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_size, shape.hidden, bias=False)

    def forward(self, hidden_BSD: Tensor, cos_SK: Tensor, sin_SK: Tensor) -> Tensor:
        batch, length, _ = hidden_BSD.shape
        heads = (batch, length, -1, self.shape.head_size)
        query_BHSK = _rotate(self.q_proj(hidden_BSD).view(heads).transpose(1, 2), cos_SK, sin_SK)
        key_BGSK = _rotate(self.k_proj(hidden_BSD).view(heads).transpose(1, 2), cos_SK, sin_SK)
        value_BGSK = self.v_proj(hidden_BSD).view(heads).transpose(1, 2)
        mixed_BHSK = F.scaled_dot_product_attention(query_BHSK, key_BGSK, value_BGSK, is_causal=True, enable_gqa=True)
        update_BSD: Tensor = self.o_proj(mixed_BHSK.transpose(1, 2).reshape(batch, length, -1))
        return update_BSD


class _SwiGLU(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.ffn, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.ffn, bias=False)
        self.down_proj = nn.Linear(shape.ffn, shape.hidden, bias=False)

    def forward(self, hidden_BSD: Tensor) -> Tensor:
        update_BSD: Tensor = self.down_proj(F.silu(self.gate_proj(hidden_BSD)) * self.up_proj(hidden_BSD))
        return update_BSD


def _rotation(shape: Shape) -> tuple[Tensor, Tensor]:
    frequencies = shape.rope_theta ** -(torch.arange(0, shape.head_size, 2).float() / shape.head_size)
    angles = torch.outer(torch.arange(shape.positions).float(), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def _rotate(heads_BHSK: Tensor, cos_SK: Tensor, sin_SK: Tensor) -> Tensor:
    first, second = heads_BHSK.chunk(2, dim=-1)
    return heads_BHSK * cos_SK + torch.cat((-second, first), dim=-1) * sin_SK


def _start(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    with torch.no_grad():
        if parameter.ndim == 1:
            parameter.fill_(1.0)
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.zero_()  # every layer starts as the identity
        else:
            deviation = 0.02 if name.endswith("embed_tokens.weight") else 0.5 * parameter.shape[1] ** -0.5
            parameter.normal_(0.0, deviation, generator=generator)
