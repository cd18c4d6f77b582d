"""The key-value cache of an inlay model: full layers keep every key, windows keep min(T, window + sinks), others none.

Shapes: `B` batch, `H` KV heads, `K` keys held, `Q` new tokens, `T` tokens seen, `D` head size. A column is a token's
place in the sequence, padding included. A window layer holds its first `sinks` slots apart; the slots behind them are
the last columns seen, without gaps. Rotary positions are applied before a key is stored, so what is held stays right.

This file is copied beside exported weights, so it imports only torch and transformers.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer
from transformers.masking_utils import create_causal_mask

from .context_inlay import WindowKey

IMPLEMENTATIONS = ("sdpa", "eager", "flex_attention")  # attention that takes any mask


class InlayCache(Cache):
    """One cache layer a model layer, sized by what that layer's attention can still see.

    `layers` are those that the kinds of attention gave, one a model layer. The model calls `begin` once a forward;
    layers with the same window then share its plans.
    """

    def __init__(self, layers: Sequence[CacheLayerMixin]) -> None:
        self.groups: dict[WindowKey, WindowGroup] = {}
        for layer in layers:
            if isinstance(layer, WindowLayer):
                key = (layer.group.window, layer.group.sinks)
                layer.group = self.groups.setdefault(key, layer.group)
        super().__init__(layers=list(layers))
        self.length = 0
        self.starts_B: Tensor | None = None
        self._everything: Tensor | None = None

    def begin(self, num_new: int, starts_B: Tensor | None) -> None:
        """Plan a forward of `num_new` tokens; `starts_B` is each row's first real column, None without padding.

        Raises ValueError when a row starts elsewhere than it did: the sinks it holds would be others.
        """
        if self.groups and self.length and self._have_moved(starts_B):
            raise ValueError(
                "this cache was filled with another padding than the attention_mask now says; "
                "pass the attention_mask of all columns since the first, as generate does"
            )
        self.starts_B = starts_B
        start_range = (0, 0) if starts_B is None else (int(starts_B.min()), int(starts_B.max()))
        for group in self.groups.values():
            group.begin(self.length, num_new, starts_B, start_range)
        self.length += num_new

    def _have_moved(self, starts_B: Tensor | None) -> bool:
        if self.starts_B is None and starts_B is None:
            return False
        before_B = 0 if self.starts_B is None else self.starts_B
        after_B = 0 if starts_B is None else starts_B
        # A row that was only padding so far may start anywhere behind it.
        moved_B = torch.as_tensor(before_B != after_B) & torch.as_tensor(before_B < self.length)
        return bool(moved_B.any())

    def everything(self, span: Span, num_keys: int) -> Tensor:
        """A mask that hides nothing from one query [B, 1, 1, K], made once: it is the same at every step."""
        shape = (span.batch, 1, 1, num_keys)
        if self._everything is None or self._everything.shape != shape or self._everything.device != span.device:
            self._everything = torch.ones(shape, dtype=torch.bool, device=span.device)
        return self._everything

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen, whatever the layer holds of them."""
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Keys and first column of a layer that keeps all its keys."""
        return self.length + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens (a negative number or 0, as the library calls it).

        Raises ValueError for a positive number, and when a window no longer holds what it would need.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes the negative number of tokens to remove; given {tokens_to_remove}")
        if -tokens_to_remove > self.length:
            raise ValueError(f"crop was asked to remove {-tokens_to_remove} of {self.length} tokens")
        for group in self.groups.values():
            group.crop(self.length, -tokens_to_remove)
        super().crop(tokens_to_remove)
        self.length += tokens_to_remove

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Take rows `beam_idx` [B] in their order."""
        super().reorder_cache(beam_idx)
        if self.starts_B is not None:
            self.starts_B = self.starts_B[beam_idx.to(self.starts_B.device)]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        super().batch_repeat_interleave(repeats)
        if self.starts_B is not None:
            self.starts_B = self.starts_B.repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep rows `indices`."""
        super().batch_select_indices(indices)
        if self.starts_B is not None:
            self.starts_B = self.starts_B[indices]

    def activate_past_recording(self) -> None:
        """Keep keys that leave a window until the next `crop`, so that tokens can be taken back."""
        super().activate_past_recording()
        for group in self.groups.values():
            group.recording = True

    def reset(self) -> None:
        """Forget everything."""
        self.length = 0
        self.starts_B = None
        for group in self.groups.values():
            group.held = 0
            group.recording = False
        super().reset()


@dataclass(frozen=True)
class Keep:
    """Which slots outlive a trim: `first` at the front and `last` at the end, or one row of slots a sequence."""

    first: int
    last: int
    slots_BK: Tensor | None = None

    def parts(self, states_BHKD: Tensor) -> list[Tensor]:
        """What is kept, in order, to be concatenated (which copies: a view would hold on to what is dropped)."""
        if self.slots_BK is not None:
            index = self.slots_BK[:, None, :, None]
            return [states_BHKD.gather(2, index.expand(-1, states_BHKD.shape[1], -1, states_BHKD.shape[3]))]
        tail = states_BHKD[:, :, states_BHKD.shape[2] - self.last :]
        return [states_BHKD[:, :, : self.first], tail] if self.first else [tail]


class WindowGroup:
    """What all layers with one window share: how many slots they hold, and the plan of the running forward."""

    def __init__(self, window: int, sinks: int) -> None:
        self.window = window
        self.sinks = sinks
        self.held = 0
        self.recording = False
        self.length = 0  # tokens seen once the running forward is done
        self.visible = 0  # slots that the running forward attends to
        self.before: Keep | None = None  # applied to what is held, before new keys are appended
        self.after: Keep | None = None  # applied to held and new keys, before they are stored
        self.starts_B: Tensor | None = None
        self._start_range = (0, 0)

    def begin(self, length: int, num_new: int, starts_B: Tensor | None, start_range: tuple[int, int]) -> None:
        """Plan the layers' next update: what goes before and after `num_new` keys are appended to `length`."""
        self.starts_B = starts_B
        self._start_range = start_range
        # A new query sees itself, so one slot less than the window suffices before it is appended.
        kept = self.held if self.recording else min(self.held, self.window - 1 + self.sinks)
        self.before = self._keep(length, self.held, kept)
        seen = kept + num_new
        stored = seen if self.recording else min(seen, self.window + self.sinks)
        self.after = self._keep(length + num_new, seen, stored)
        self.held = stored
        self.visible = seen
        self.length = length + num_new

    def columns(self, device: torch.device) -> Tensor:
        """The column of every slot that the running forward attends to, [1 or B, K]."""
        slots_1K = torch.arange(self.visible, device=device)[None]
        behind = self.length - self.visible
        if behind == 0:
            return slots_1K
        firsts = torch.zeros(1, 1, dtype=torch.long, device=device)
        if self.starts_B is not None:
            firsts = self.starts_B[:, None].clamp(max=behind)
        return torch.where(slots_1K < self.sinks, slots_1K + firsts, slots_1K + behind)

    def crop(self, length: int, num_removed: int) -> None:
        """Plan a crop to `length - num_removed` tokens; ValueError when the window has forgotten too much."""
        left, held = length - num_removed, self.held - num_removed
        if held < min(left, self.window - 1 + self.sinks):
            raise ValueError(
                f"{num_removed} tokens cannot be taken back: a window of {self.window} with {self.sinks} sinks "
                f"holds {self.held} of {length} keys; call activate_past_recording before the tokens are added"
            )
        stored = min(held, self.window + self.sinks)
        self.after = self._keep(left, held, stored)
        self.held = stored

    def _keep(self, length: int, held: int, kept: int) -> Keep | None:
        """How to go from the last `held` columns (sinks apart) to `kept`; None when nothing goes."""
        if kept == held:
            return None
        sinks, (least, most) = self.sinks, self._start_range
        behind_held, behind_kept = length - held, length - kept
        if self.starts_B is None or not sinks or most <= behind_held:
            return Keep(sinks, kept - sinks)  # every row's sinks stand apart already
        if least >= behind_kept:
            return Keep(0, kept)  # no row's sinks have left the last columns
        starts_B1 = self.starts_B[:, None]
        slots_1K = torch.arange(kept, device=starts_B1.device)[None]
        columns_BK = slots_1K + torch.where(slots_1K < sinks, starts_B1.clamp(max=behind_kept), behind_kept)
        is_last = columns_BK >= behind_held + sinks
        return Keep(0, 0, columns_BK - torch.where(is_last, behind_held, starts_B1.clamp(max=behind_held)))


class WindowLayer(DynamicLayer):
    """The keys and values of one window layer, [B, H, K, D]; what to keep is its group's plan."""

    is_sliding = True

    def __init__(self, window: int, sinks: int) -> None:
        super().__init__()
        self.group = WindowGroup(window, sinks)

    @property
    def record_past(self) -> bool:
        """Whether keys that leave the window are kept until the next crop."""
        return self.group.recording

    @record_past.setter
    def record_past(self, value: bool) -> None:
        self.group.recording = value

    def activate_past_recording(self) -> None:
        """Keep keys that leave the window until the next crop."""
        self.group.recording = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append new keys and values; returns those that the new queries may see, [B, H, K, D]."""
        self.is_initialized = True
        self.keys, keys = self._append(self.keys, key_states)
        self.values, values = self._append(self.values, value_states)
        return keys, values

    def _append(self, held_BHKD: Tensor | None, new_BHQD: Tensor) -> tuple[Tensor, Tensor]:
        before, after = self.group.before, self.group.after
        if held_BHKD is None or held_BHKD.numel() == 0:
            seen_BHKD = new_BHQD
        elif before is None:
            seen_BHKD = torch.cat((held_BHKD, new_BHQD), dim=2)
        else:
            seen_BHKD = torch.cat((*before.parts(held_BHKD), new_BHQD), dim=2)
        return (seen_BHKD if after is None else torch.cat(after.parts(seen_BHKD), dim=2)), seen_BHKD

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last tokens, then what the window does not need (planned by the group)."""
        if self.keys is None or self.values is None:
            return
        keep = self.group.after
        end = self.keys.shape[2] + tokens_to_remove
        self.keys, self.values = self.keys[:, :, :end], self.values[:, :, :end]
        if keep is not None:
            self.keys, self.values = (torch.cat(keep.parts(states), dim=2) for states in (self.keys, self.values))

    def get_seq_length(self) -> int:
        """Keys held."""
        return 0 if self.keys is None else self.keys.shape[2]


@dataclass(frozen=True)
class Span:
    """The new tokens of one forward: columns `past` to `past + num_new` of `batch` rows.

    `padding_BT` (True where a token is real) and `starts_B` (each row's first real column) are None without padding.
    """

    batch: int
    past: int
    num_new: int
    dtype: torch.dtype
    device: torch.device
    padding_BT: Tensor | None = None
    starts_B: Tensor | None = None

    @classmethod
    def of(cls, hidden_BQD: Tensor, past: int, attention_mask_BT: Tensor | None) -> Span:
        """The span of `hidden_BQD` after `past` columns; ValueError when the mask covers other columns."""
        batch, num_new = hidden_BQD.shape[:2]
        plain = cls(batch, past, num_new, hidden_BQD.dtype, hidden_BQD.device)
        if attention_mask_BT is None or bool(attention_mask_BT.all()):
            return plain
        if attention_mask_BT.shape != (batch, past + num_new):
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask_BT.shape)}; it must cover all {past + num_new} "
                f"columns ({past} in the cache and {num_new} new) of {batch} rows"
            )
        padding_BT = attention_mask_BT.to(device=plain.device, dtype=torch.bool)
        return replace(plain, padding_BT=padding_BT, starts_B=first_real_columns(padding_BT))


def first_real_columns(padding_BT: Tensor) -> Tensor:
    """Each row's first column that is not padding [B]; the number of columns where there is none yet."""
    starts_B = padding_BT.long().argmax(-1)
    return torch.where(padding_BT.any(-1), starts_B, padding_BT.shape[-1])


def hides_nothing(key: WindowKey, num_columns: int) -> bool:
    """Whether a window leaves plain causal attention over so many columns.

    Without sinks, a window of just `num_columns` counts as hiding: stock classes make its mask, and other kernels
    differ in the last bit.
    """
    window, sinks = key
    return num_columns <= window + sinks if sinks else num_columns < window


def make_mask(span: Span, key: WindowKey | None, implementation: str, cache: InlayCache | None) -> Any:
    """The mask of layers with window `key` (None: full) as "sdpa", "eager" or "flex_attention" reads it.

    Query t sees key j if j <= t and (t - j < window or j < sinks), counted from the row's first real column. None
    where the kernel's own causal order says the same. Follows `InlayCache.begin`.
    """
    group = None if key is None or cache is None else cache.groups[key]
    plain = span.padding_BT is None and implementation == "sdpa"
    length = span.past + span.num_new
    if plain and (key is None or hides_nothing(key, length)):
        if span.num_new == 1 or span.past == 0:
            return None
    elif plain and cache is not None and group is not None and span.num_new == 1 and not group.recording:
        # One query sees whatever its window holds.
        return None if group.sinks else cache.everything(span, group.visible)
    columns_BK = torch.arange(length, device=span.device)[None] if group is None else group.columns(span.device)
    return _as_read_by(implementation, _visible(span, key, columns_BK), span)


def make_library_mask(
    config: PreTrainedConfig,
    key: WindowKey | None,
    hidden_BQD: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor,
    cache: Cache | None,
    layer_index: int,
) -> Any:
    """The library's mask of layers with window `key`: over stock caches, which keep every key, and over packed rows.

    `layer_index` is a layer of the cache that has attention. Raises ValueError where a window would silently be lost.
    """
    num_new = hidden_BQD.shape[1]
    num_keys = num_new if cache is None else cache.get_mask_sizes(num_new, layer_index)[0]
    arguments: dict[str, Any] = {
        "config": config,
        "inputs_embeds": hidden_BQD,
        "attention_mask": attention_mask,
        "past_key_values": cache,
        "position_ids": position_ids,
        "layer_idx": layer_index,
    }
    if key is None or hides_nothing(key, num_keys):
        return create_causal_mask(**arguments)
    if config._attn_implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"attn_implementation is {config._attn_implementation!r}, which knows no windows with sinks; "
            f"load the model with one of {', '.join(IMPLEMENTATIONS)}"
        )
    if attention_mask is not None and attention_mask.ndim != 2:
        raise ValueError("a 4D attention_mask would replace the windows of this model; pass a 2D one")
    window, sinks = key
    if attention_mask is None and cache is None:
        ranks_BK = position_ids.expand(hidden_BQD.shape[0], -1)  # they start anew with every packed document
    else:
        columns_1K = torch.arange(num_keys, device=hidden_BQD.device)[None]
        starts_B1 = 0 if attention_mask is None else attention_mask.long().argmax(-1, keepdim=True)
        ranks_BK = (columns_1K - starts_B1).expand(hidden_BQD.shape[0], -1)

    def is_near(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key > query - window) | (ranks_BK[row, key] < sinks)

    return create_causal_mask(**arguments, and_mask_function=is_near)


def _visible(span: Span, key: WindowKey | None, columns_BK: Tensor) -> Tensor:
    queries_Q1 = torch.arange(span.past, span.past + span.num_new, device=span.device)[:, None]
    keys_B1K = columns_BK[:, None, :]
    visible_BQK = keys_B1K <= queries_Q1
    if key is not None:
        window, sinks = key
        near_BQK = queries_Q1 - keys_B1K < window
        if sinks:
            starts_B11 = 0 if span.starts_B is None else span.starts_B[:, None, None]
            near_BQK = near_BQK | (keys_B1K - starts_B11 < sinks)
        visible_BQK = visible_BQK & near_BQK
    if span.padding_BT is not None:
        real_BK = span.padding_BT.gather(1, columns_BK.expand(span.batch, -1))
        visible_BQK = visible_BQK & real_BK[:, None, :]
    return visible_BQK[:, None].expand(span.batch, 1, -1, -1)


def _as_read_by(implementation: str, visible_B1QK: Tensor, span: Span) -> Any:
    if implementation == "sdpa":
        return visible_B1QK
    if implementation == "eager":
        zero = torch.zeros((), dtype=span.dtype, device=span.device)
        return torch.where(visible_B1QK, zero, torch.finfo(span.dtype).min)
    batch, _, num_queries, num_keys = visible_B1QK.shape

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return visible_B1QK[row, 0, query, key]

    return create_block_mask(sees, batch, None, num_queries, num_keys, device=str(span.device))
