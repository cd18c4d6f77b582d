"""The one model of training, measuring and export: layers of a parent's family, each with what its block says.

A layer builds the family's own Transformers modules and keeps only those it has, so a child of all-parent blocks gives
the parent's logits bit for bit. Shapes: `B` batch, `S` (or `Q` beside a cache) sequence, `K` keys, `T` columns seen,
`D` model width, `V` vocabulary.

This file is copied beside exported weights, so it imports only torch, transformers and its neighbours.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep

from .cache_inlay import IMPLEMENTATIONS, InlayCache, Span, make_library_mask, make_mask
from .configuration_inlay import InlayConfig
from .context_inlay import ForwardContext, WindowKey
from .families_inlay import FAMILY_MODULES
from .kinds_inlay import SUBBLOCKS
from .no_op_inlay import ABSENT
from .sparse_inlay import keep_packed
from .subblock_inlay import FORMAT, SLOTS, Entry, Slot


class InlayLayer(GradientCheckpointingLayer):
    """One decoder layer with the subblocks that its entries name; None is an absent slot, the same as no_op.

    Raises ValueError naming the layer when an entry does not fit the family's sizes.
    """

    input_layernorm: nn.Module
    self_attn: nn.Module
    post_attention_layernorm: nn.Module
    mlp: nn.Module

    def __init__(self, config: InlayConfig, layer_index: int, attention: Entry | None, ffn: Entry | None) -> None:
        super().__init__()
        self.layer_index = layer_index
        self.entries = {
            slot: SUBBLOCKS.check(slot, ABSENT if entry is None else entry, f"layer {layer_index} {slot}", config.base)
            for slot, entry in zip(SLOTS, (attention, ffn), strict=True)
        }
        self.attention_kind, self.ffn_kind = (SUBBLOCKS.of(self.entries[slot]) for slot in SLOTS)
        self.window = next(iter(self.attention_kind.masks(self.entries["attention"])), None)
        for slot, kind in zip(SLOTS, (self.attention_kind, self.ffn_kind), strict=True):
            for name, module in kind.modules(config, layer_index, slot, self.entries[slot]).items():
                if config.packed and FORMAT in self.entries[slot]:
                    keep_packed(module, self.entries[slot][FORMAT])
                self.add_module(name, module)

    def forward(self, hidden_BSD: Tensor, context: ForwardContext) -> Tensor:
        """The layer's output [B, S, D]: its input plus the update of each subblock it has."""
        if not self.attention_kind.absent:
            hidden_BSD = hidden_BSD + self.attention_update(hidden_BSD, context)
        if not self.ffn_kind.absent:
            hidden_BSD = hidden_BSD + self.ffn_update(hidden_BSD)
        return hidden_BSD

    def is_plain(self, slot: Slot) -> bool:
        """Whether a subblock is nothing but its modules, as `SubblockKind.is_plain` says."""
        return (self.attention_kind if slot == "attention" else self.ffn_kind).is_plain

    def attention_update(self, hidden_BSD: Tensor, context: ForwardContext) -> Tensor:
        """What the attention subblock adds to its input [B, S, D]; zeros where there is none."""
        return self.attention_kind.update(self, "attention", hidden_BSD, context)

    def ffn_update(self, hidden_BSD: Tensor) -> Tensor:
        """What the ffn subblock adds to its input [B, S, D]; zeros where there is none."""
        return self.ffn_kind.update(self, "ffn", hidden_BSD, None)


class InlayPreTrainedModel(PreTrainedModel):
    """What Transformers asks of a model class before it looks inside."""

    config_class = InlayConfig
    config: InlayConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["InlayLayer"]  # noqa: RUF012 (the library's own declaration)
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True


class InlayModel(InlayPreTrainedModel):
    """Embedding, layers and final norm."""

    first_attention: int  # the first layer that stores keys; 0 when none does
    window_keys: list[WindowKey | None]  # the kinds of attention there are
    is_recurrent: bool  # whether some layer holds a state, which must be told of padding and documents

    def __init__(self, config: InlayConfig) -> None:
        super().__init__(config)
        modules = FAMILY_MODULES[config.family]
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        layers = [InlayLayer(config, i, block["attention"], block["ffn"]) for i, block in enumerate(config.blocks)]
        self.layers = nn.ModuleList(layers)
        self.norm = modules.norm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = modules.rotary(config=config.family_config())
        self.gradient_checkpointing = False
        masks = [SUBBLOCKS.of(block["attention"]).masks(block["attention"]) for block in config.blocks]
        self.first_attention = next((index for index, keys in enumerate(masks) if keys), 0)
        self.window_keys = list(dict.fromkeys(key for keys in masks for key in keys))
        self.is_recurrent = any(SUBBLOCKS.of(block["attention"]).recurrent for block in config.blocks)
        self.post_init()

    def new_cache(self) -> InlayCache:
        """An empty cache whose layers hold what this model's attention can see."""
        entries = [block["attention"] for block in self.config.blocks]
        return InlayCache([SUBBLOCKS.of(entry).cache_layer(entry) for entry in entries])

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Final normed hidden states [B, S, D] of `input_ids` [B, S] or `inputs_embeds` [B, S, D].

        `hidden_states` has the embedding, then every layer's output, the last one after the final norm;
        `attentions` has one entry a layer, None where a layer has no attention.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        hidden_BSD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = self._cache_of(past_key_values, use_cache)
        attentions: list[Tensor | None] | None = None
        if self.config.output_attentions if output_attentions is None else output_attentions:
            if self.config._attn_implementation != "eager":
                raise ValueError("output_attentions needs the model loaded with attn_implementation='eager'")
            attentions = [None] * len(self.layers)
        context = self._context(hidden_BSD, attention_mask, position_ids, cache)
        context.attentions = attentions
        keep = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden_states: list[Tensor] = []
        for layer in self.layers:
            if keep:
                hidden_states.append(hidden_BSD)
            hidden_BSD = layer(hidden_BSD, context)
        hidden_BSD = self.norm(hidden_BSD)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden_BSD,
            past_key_values=cache,
            hidden_states=(*hidden_states, hidden_BSD) if keep else None,
            attentions=None if attentions is None else tuple(attentions),  # type: ignore[arg-type]
        )

    def _cache_of(self, past_key_values: Cache | None, use_cache: bool | None) -> Cache | None:
        checkpointing = self.gradient_checkpointing and self.training
        if past_key_values is not None and checkpointing:
            raise ValueError("gradient checkpointing computes a layer twice, so it takes no past_key_values")
        wanted = self.config.use_cache if use_cache is None else use_cache
        return self.new_cache() if wanted and past_key_values is None and not checkpointing else past_key_values

    def _context(
        self, hidden_BQD: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, cache: Cache | None
    ) -> ForwardContext:
        num_new = hidden_BQD.shape[1]
        past = self._tokens_seen(cache)
        # Without a mask and a cache, positions that start anew mean documents packed in one row.
        may_be_packed = position_ids is not None and attention_mask is None and cache is None
        if position_ids is None and self.is_recurrent and attention_mask is not None and attention_mask.ndim == 2:
            # What a state is told depends on where a token stands, not only on how far from another: as generate does.
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -num_new:]
        if position_ids is None:
            position_ids = torch.arange(num_new, device=hidden_BQD.device)[None] + past
        context = ForwardContext(self.rotary_emb(hidden_BQD, position_ids=position_ids), cache=cache)
        if self.is_recurrent:
            self._tell_states(context, num_new, attention_mask, position_ids if may_be_packed else None)
        implementation = self.config._attn_implementation
        is_library = (
            may_be_packed
            or implementation not in IMPLEMENTATIONS
            or (attention_mask is not None and attention_mask.ndim != 2)
            or (cache is not None and not isinstance(cache, InlayCache))
            or (cache is None and attention_mask is not None and torch.compiler.is_compiling())
        )
        if is_library:
            context.masks = {
                key: make_library_mask(
                    self.config, key, hidden_BQD, attention_mask, position_ids, cache, self.first_attention
                )
                for key in self.window_keys
            }
            if isinstance(cache, InlayCache):
                cache.begin(num_new, None)
            return context
        span = Span.of(hidden_BQD, past, attention_mask)
        if isinstance(cache, InlayCache):
            cache.begin(num_new, span.starts_B)
        own = cache if isinstance(cache, InlayCache) else None
        context.masks = {key: make_mask(span, key, implementation, own) for key in self.window_keys}
        return context

    def _tell_states(
        self, context: ForwardContext, num_new: int, attention_mask: Tensor | None, packed_BS: Tensor | None
    ) -> None:
        if attention_mask is not None:
            if attention_mask.ndim != 2:
                raise ValueError("a 4D attention_mask cannot hide tokens from a state; pass a 2D one")
            context.real_BS = attention_mask[:, -num_new:].to(torch.bool)
        if packed_BS is not None:
            # A position that does not go on from the one before opens a document.
            context.documents_BS = functional.pad(packed_BS.diff(dim=-1) != 1, (1, 0)).cumsum(-1)

    def _tokens_seen(self, cache: Cache | None) -> Any:
        """Tokens in the cache; a static cache says it as a tensor. ValueError for a cache that cannot know."""
        if cache is None or not self.window_keys:
            return 0 if not isinstance(cache, InlayCache) else cache.length
        if self.first_attention and cache.layer_class_to_replicate is not None:
            raise ValueError(
                f"this cache counts tokens at layer 0, which has no attention (the first is {self.first_attention}); "
                "pass model.new_cache() or DynamicCache(config=model.config)"
            )
        return cache.get_seq_length(self.first_attention)


class InlayForCausalLM(InlayPreTrainedModel, GenerationMixin):
    """An inlay model with its language-model head; generates, trains and exports like any Transformers model."""

    model: InlayModel
    lm_head: nn.Linear
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: InlayConfig) -> None:
        super().__init__(config)
        self.model = InlayModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def new_cache(self) -> InlayCache:
        """An empty cache whose layers hold what this model's attention can see."""
        return self.model.new_cache()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits [B, S, V] of the positions that `logits_to_keep` names, and the loss when `labels` are given."""
        outputs = self.model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_hidden_states,
            output_attentions,
        )
        logits_BSV = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits_BSV, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits_BSV,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return result if (self.config.return_dict if return_dict is None else return_dict) else result.to_tuple()

    def forward_hidden(self, ids_BS: Tensor) -> tuple[list[Tensor], Tensor]:
        """Every layer's output and the final normed hidden states, all [B, S, D]; no cache, no padding."""
        outputs_BSD: list[Tensor] = []
        hidden_BSD = self.model.embed_tokens(ids_BS)
        context = self.model._context(hidden_BSD, None, None, None)
        for layer in self.model.layers:
            hidden_BSD = layer(hidden_BSD, context)
            outputs_BSD.append(hidden_BSD)
        return outputs_BSD, self.model.norm(hidden_BSD)

    @property
    def head_VD(self) -> Tensor:
        """The head's weight [V, D]; the embedding's when they are tied."""
        return self.lm_head.weight

    @staticmethod
    def create_masks_for_generate(
        config: InlayConfig,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor | None:
        """The mask unchanged: generate asks before a static cache's forward, and a 4D mask would lose the windows."""
        return attention_mask

    def _prepare_cache_for_generation(  # type: ignore[no-untyped-def]
        self, generation_config, model_kwargs, *args, **kwargs
    ) -> bool:
        # The stock dynamic cache is right too (it keeps every key), but saves nothing on windows.
        given = model_kwargs.get("past_key_values")
        is_new: bool = super()._prepare_cache_for_generation(  # type: ignore[misc]
            generation_config, model_kwargs, *args, **kwargs
        )
        cache = model_kwargs.get("past_key_values")
        if given is None and type(cache) is DynamicCache and not cache.offloading:
            model_kwargs["past_key_values"] = self.new_cache()
            if generation_config.is_assistant:
                model_kwargs["past_key_values"].activate_past_recording()
        return is_new


class Ends(nn.Module):
    """A model's two ends, frozen: token embedding, final norm and head.

    `state` holds `model.embed_tokens.weight`, `model.norm.weight` and, unless tied, `lm_head.weight`; KeyError names
    one that is missing.
    """

    def __init__(self, config: InlayConfig, state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        embedding_VD = state["model.embed_tokens.weight"].to(dtype)
        self.embedding_VD = nn.Parameter(embedding_VD, requires_grad=False)
        self.final_norm = FAMILY_MODULES[config.family].norm(config.hidden_size, eps=config.rms_norm_eps)
        self.final_norm.load_state_dict({"weight": state["model.norm.weight"].to(dtype)}, assign=True)
        self.final_norm.requires_grad_(False)
        self.head_VD = self.embedding_VD
        if not config.tie_word_embeddings:
            self.head_VD = nn.Parameter(state["lm_head.weight"].to(dtype), requires_grad=False)

    def embed(self, ids_BS: Tensor) -> Tensor:
        """Token ids [B, S] to hidden states [B, S, D]."""
        return nn.functional.embedding(ids_BS, self.embedding_VD)

    def norm(self, hidden_BSD: Tensor) -> Tensor:
        """The final norm of hidden states [B, S, D]."""
        normed_BSD: Tensor = self.final_norm(hidden_BSD)
        return normed_BSD


def build_layer(
    config: InlayConfig,
    layer_index: int,
    attention: Entry | None,
    ffn: Entry | None,
    state: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> InlayLayer:
    """A frozen layer, sdpa attention, that shares the tensors of `state` where their dtype is `dtype` already.

    `state` has layer-local names and exactly those the entries need (RuntimeError names others). Its mask comes from
    `make_context` or from a model's forward.
    """
    config = copy.copy(config)
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        layer = InlayLayer(config, layer_index, attention, ffn)
    layer.load_state_dict({name: tensor.to(dtype) for name, tensor in state.items()}, strict=True, assign=True)
    return layer.requires_grad_(False).eval()


def make_context(
    config: InlayConfig,
    batch: int,
    sequence: int,
    dtype: torch.dtype,
    device: torch.device | str,
    entries: Iterable[Entry | None],
) -> ForwardContext:
    """The context of causal forwards without a cache over [batch, sequence, D]; make it once and use it for all.

    `entries` are all attention entries that layers with this context have; each kind of window gets one mask.
    """
    device = torch.device(device)
    rotary = FAMILY_MODULES[config.family].rotary(config=config.family_config()).to(device)
    hidden_BSD = torch.empty(batch, sequence, 0, dtype=dtype, device=device)
    span = Span.of(hidden_BSD, 0, None)
    keys = {key for entry in entries if entry is not None for key in SUBBLOCKS.of(entry).masks(entry)}
    return ForwardContext(
        position_embeddings=rotary(hidden_BSD, position_ids=torch.arange(sequence, device=device)[None]),
        masks={key: make_mask(span, key, "sdpa", None) for key in keys},
    )
