"""What `gla` is made of: its module, its cache layer, and its sum over tokens in chunks and token by token.

For every head of keys, S_t = diag(a_t) S_(t-1) + k_t v_t' and o_t = S_t' q_t, where v_t ends with a 1: the last number
of o_t is the sum of the weights that the others are divided by. Between chunks the state is carried on; within one
all tokens are computed at once, gates as differences of sums of logarithms (Yang et al., arXiv 2312.06635, section 4).

Shapes: `B` batch, `G` heads of keys, `R` query heads of each, `S` tokens, `N` chunks of `C`, `K` key size, `V` value
size and one, `D` model width, `H` = G·R.

This file is copied beside exported weights, so it imports only torch, transformers and its neighbours.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.cache_utils import Cache, DynamicLayer
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from .context_inlay import ForwardContext

CHUNK = 32
"""Tokens that are computed at once."""
TEMPERATURE = 16.0
"""What a gate's logarithm is divided by, so that it is near 1 unless the token says otherwise (section 4.4)."""
EPSILON = 1e-6
"""Added to the sum of weights, which is 0 where no key is like the query."""
LEAST_LOG_GATE = -2.5
"""A state keeps at least exp of it of every number. Within a chunk gates are taken relative to its middle: the largest
factor is exp(16 * 2.5), and that of two is still a float32."""


@dataclass(frozen=True)
class Tokens:
    """What a run of tokens gives a state, in float32."""

    query_BGRSK: Tensor
    key_BGSK: Tensor
    value_BGSV: Tensor
    log_gate_BGSK: Tensor
    documents_BS: Tensor | None = None
    """Each token's document; None where all are of one, which is that of the state."""

    def first(self, count: int) -> Tokens:
        """The first of them; `documents_BS` is not kept."""
        rows = (self.key_BGSK, self.value_BGSV, self.log_gate_BGSK)
        return Tokens(self.query_BGRSK[:, :, :, :count], *(row[:, :, :count] for row in rows))

    def then(self, later: Tokens) -> Tokens:
        """These and later ones."""
        rows = ((self.key_BGSK, later.key_BGSK), (self.value_BGSV, later.value_BGSV))
        gates = (self.log_gate_BGSK, later.log_gate_BGSK)
        query_BGRSK = torch.cat((self.query_BGRSK, later.query_BGRSK), dim=3)
        return Tokens(query_BGRSK, *(torch.cat(row, dim=2) for row in (*rows, gates)))

    def empty_state(self) -> Tensor:
        """What a sequence begins with [B, G, K, V]."""
        key, value = self.key_BGSK, self.value_BGSV
        return value.new_zeros(*key.shape[:2], key.shape[-1], value.shape[-1])


def recurrent(tokens: Tokens, state_BGKV: Tensor) -> tuple[Tensor, Tensor]:
    """What the state gives each token [B, G, R, S, V], and the state behind the last, token by token."""
    found = []
    for place in range(tokens.key_BGSK.shape[2]):
        gate_BGK1 = tokens.log_gate_BGSK[:, :, place, :, None].exp()
        if tokens.documents_BS is not None and place:
            goes_on_B = tokens.documents_BS[:, place] == tokens.documents_BS[:, place - 1]
            gate_BGK1 = gate_BGK1 * goes_on_B[:, None, None, None]
        added_BGKV = tokens.key_BGSK[:, :, place, :, None] * tokens.value_BGSV[:, :, place, None, :]
        state_BGKV = gate_BGK1 * state_BGKV + added_BGKV
        found.append(tokens.query_BGRSK[:, :, :, place] @ state_BGKV)
    return torch.stack(found, dim=3), state_BGKV


def chunked(tokens: Tokens, state_BGKV: Tensor) -> tuple[Tensor, Tensor]:
    """The same, chunk by chunk."""
    num_tokens = tokens.key_BGSK.shape[2]
    size = min(CHUNK, num_tokens)
    query_BGRNCK = _in_chunks(tokens.query_BGRSK, size)
    key_BGNCK, value_BGNCV = _in_chunks(tokens.key_BGSK, size), _in_chunks(tokens.value_BGSV, size)
    sum_BGNCK = _in_chunks(tokens.log_gate_BGSK, size).cumsum(dim=-2)
    middle_BGN1K, end_BGN1K = sum_BGNCK[..., size // 2, None, :], sum_BGNCK[..., -1:, :]
    near_query_BGRNCK = query_BGRNCK * (sum_BGNCK - middle_BGN1K).exp()[:, :, None]
    near_key_BGNCK = key_BGNCK * (middle_BGN1K - sum_BGNCK).exp()
    weights_BGRNCC = (near_query_BGRNCK @ near_key_BGNCK.mT[:, :, None]).tril()
    far_query_BGRNCK = query_BGRNCK * sum_BGNCK.exp()[:, :, None]
    kept_key_BGNCK = key_BGNCK * (end_BGN1K - sum_BGNCK).exp()
    kept_BGNK1 = end_BGN1K.exp().mT
    if tokens.documents_BS is not None:
        documents_BNC = _documents_in_chunks(tokens.documents_BS, size)
        last_BN1 = documents_BNC[..., -1:]
        before_BN1 = torch.cat((documents_BNC[:, :1, :1], last_BN1[:, :-1]), dim=1)
        same_BNCC = documents_BNC[..., :, None] == documents_BNC[..., None, :]
        weights_BGRNCC = weights_BGRNCC.masked_fill(~same_BNCC[:, None, None], 0.0)
        far_query_BGRNCK = far_query_BGRNCK * (documents_BNC == before_BN1)[:, None, None, ..., None]
        kept_key_BGNCK = kept_key_BGNCK * (documents_BNC == last_BN1)[:, None, ..., None]
        kept_BGNK1 = kept_BGNK1 * (last_BN1 == before_BN1)[:, None, ..., None]
    added_BGNKV = kept_key_BGNCK.mT @ value_BGNCV
    states = []
    for chunk in range(added_BGNKV.shape[2]):
        states.append(state_BGKV)
        state_BGKV = kept_BGNK1[:, :, chunk] * state_BGKV + added_BGNKV[:, :, chunk]
    before_BGNKV = torch.stack(states, dim=2)
    found = weights_BGRNCC @ value_BGNCV[:, :, None] + far_query_BGRNCK @ before_BGNKV[:, :, None]
    return found.flatten(3, 4)[:, :, :, :num_tokens], state_BGKV


def _in_chunks(rows: Tensor, size: int) -> Tensor:
    """[..., S, X] as [..., N, C, X]; what fills up the last chunk adds nothing and lets nothing fade."""
    missing = -rows.shape[-2] % size
    filled = functional.pad(rows, (0, 0, 0, missing)) if missing else rows
    chunks: Tensor = filled.unflatten(-2, (-1, size))
    return chunks


def _documents_in_chunks(documents_BS: Tensor, size: int) -> Tensor:
    """[B, N, C]; what fills up the last chunk is of the last document."""
    missing = -documents_BS.shape[-1] % size
    last_BM = documents_BS[:, -1:].expand(-1, missing)
    chunks_BNC: Tensor = torch.cat((documents_BS, last_BM), dim=-1).unflatten(-1, (-1, size))
    return chunks_BNC


class StateLayer(DynamicLayer):
    """The state of one layer: `keys` hold sums of values [B, G, K, V - 1], `values` sums of weights [B, G, K, 1].

    So that tokens can be taken back, which a state does not do by itself, those since the last `crop` are kept where
    that was asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.record_past = False
        self._before: Tensor | None = None  # the state before those tokens
        self._recorded: Tokens | None = None

    def activate_past_recording(self) -> None:
        """Keep tokens until the next crop."""
        self.record_past = True

    def advance(self, tokens: Tokens) -> Tensor:
        """What the state gives each new token [B, G, R, S, V]; it is then the one behind them."""
        before_BGKV = tokens.empty_state()
        if self.keys is not None and self.values is not None:
            before_BGKV = torch.cat((self.keys, self.values), dim=-1)
        if self.record_past:
            self._before = before_BGKV if self._recorded is None else self._before
            self._recorded = tokens if self._recorded is None else self._recorded.then(tokens)
        run = recurrent if tokens.key_BGSK.shape[2] == 1 else chunked
        found_BGRSV, after_BGKV = run(tokens, before_BGKV)
        self._hold(after_BGKV)
        return found_BGRSV

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, the state computed again since the last crop; ValueError where they were not kept."""
        if tokens_to_remove and self.keys is not None:
            held = 0 if self._recorded is None else self._recorded.key_BGSK.shape[2]
            if self._recorded is None or self._before is None or -tokens_to_remove > held:
                raise ValueError(
                    f"{-tokens_to_remove} tokens cannot be taken back from a state that holds {held} apart; "
                    "call activate_past_recording before the tokens are added"
                )
            left = held + tokens_to_remove
            self._hold(chunked(self._recorded.first(left), self._before)[1] if left else self._before)
        self._before = self._recorded = None

    def reset(self) -> None:
        """Forget everything."""
        self._before = self._recorded = None
        self.record_past = False
        super().reset()

    def _hold(self, state_BGKV: Tensor) -> None:
        self.keys, self.values = (part.clone() for part in state_BGKV.split((state_BGKV.shape[-1] - 1, 1), dim=-1))
        self.is_initialized = True


class GlaMixer(nn.Module):
    """A family's projections and norms of heads, with a state in place of its softmax."""

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear
    q_norm: nn.Module
    k_norm: nn.Module

    def __init__(self, attention: nn.Module, hidden: int, rank: int) -> None:
        super().__init__()
        for name, module in attention.named_children():
            self.add_module(name, module)
        self.head_dim = int(attention.head_dim)  # type: ignore[arg-type]
        self.gate_down = nn.Linear(hidden, rank, bias=False)
        self.gate_up = nn.Linear(rank, self.k_proj.out_features)

    def forward(self, normed_BSD: Tensor, context: ForwardContext, layer_index: int) -> Tensor:
        """The update [B, S, D]."""
        tokens = self.tokens(normed_BSD, context)
        with torch.autocast(normed_BSD.device.type, enabled=False):
            if context.cache is None:
                found_BGRSV, _ = chunked(tokens, tokens.empty_state())
            else:
                found_BGRSV = _layer_of(context.cache, layer_index).advance(tokens)
            sums_BGRSV, weights_BGRS1 = found_BGRSV.split((self.head_dim, 1), dim=-1)
            mixed_BHSV = (sums_BGRSV / (weights_BGRS1 + EPSILON)).flatten(1, 2)
        update_BSD: Tensor = self.o_proj(mixed_BHSV.transpose(1, 2).flatten(2).to(normed_BSD.dtype))
        return update_BSD

    def tokens(self, normed_BSD: Tensor, context: ForwardContext) -> Tokens:
        """What the normed input gives the state."""
        query_BHSK, key_BGSK = map(self.features, self.rotated(normed_BSD, context))
        value_BGSK, logits_BGSK = (
            rows.unflatten(-1, (-1, self.head_dim)).transpose(1, 2).float()
            for rows in (self.v_proj(normed_BSD), self.gate_up(self.gate_down(normed_BSD)))
        )
        log_gate_BGSK = (functional.logsigmoid(logits_BGSK) / TEMPERATURE).clamp(min=LEAST_LOG_GATE)
        if context.real_BS is not None:
            real_B1S1 = context.real_BS[:, None, :, None]
            key_BGSK, log_gate_BGSK = key_BGSK * real_B1S1, log_gate_BGSK * real_B1S1
        query_BGRSK = query_BHSK.unflatten(1, (key_BGSK.shape[1], -1))
        value_BGSV = functional.pad(value_BGSK, (0, 1), value=1.0)
        return Tokens(query_BGRSK, key_BGSK, value_BGSV, log_gate_BGSK, context.documents_BS)

    def features(self, states: Tensor) -> Tensor:
        """What of queries and keys is multiplied: nothing below 0."""
        return functional.relu(states)

    def rotated(self, normed_BSD: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        """Queries [B, H, S, K] and keys [B, G, S, K] as softmax would see them, in float32."""
        query_BSHK, key_BSGK = (
            project(normed_BSD).unflatten(-1, (-1, self.head_dim)) for project in (self.q_proj, self.k_proj)
        )
        if hasattr(self, "q_norm"):
            query_BSHK, key_BSGK = self.q_norm(query_BSHK), self.k_norm(key_BSGK)
        query_BHSK, key_BGSK = apply_rotary_pos_emb(
            query_BSHK.transpose(1, 2), key_BSGK.transpose(1, 2), *context.position_embeddings
        )
        return query_BHSK.float(), key_BGSK.float()


def _layer_of(cache: Cache, layer_index: int) -> StateLayer:
    layer = cache.layers[layer_index]
    if not isinstance(layer, StateLayer):
        raise ValueError(
            f"layer {layer_index} holds a state, for which a {type(cache).__name__} has no place; "
            "pass model.new_cache(), or no past_key_values at all"
        )
    return layer
