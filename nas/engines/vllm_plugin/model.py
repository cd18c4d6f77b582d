"""A child in vLLM: layers whose subblocks are what their entries in config.json say.

Shapes: `N` tokens of all sequences at once, `D` model width, `V` vocabulary. Between subblocks travel the last update
and the sum of all that came before it, so that vLLM's norm adds them in the same pass.
"""

# vLLM may be absent where types are checked, so its classes have none.
# mypy: disable-error-code="misc"
from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.interfaces import SupportsPP
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    PPMissingLayer,
    WeightsMapper,
    extract_layer_index,
    make_empty_intermediate_tensors_factory,
    make_layers,
    maybe_prefix,
)
from vllm.platforms import current_platform
from vllm.sequence import IntermediateTensors

from inlay.nas.engines.vllm_plugin.limits import model_problem, problem
from inlay.nas.engines.vllm_plugin.subblocks import MIXERS_BY_KIND, SPLIT_WEIGHTS, Common, unused_attention
from inlay.nas.families.reading import shape_of
from inlay.nas.families.shape import SLOTS, Shape
from inlay.nas.modeling import InlayConfig
from inlay.nas.modeling.kinds_inlay import SUBBLOCKS
from inlay.nas.modeling.subblock_inlay import MIXERS, NORMS

_BETWEEN_RANKS = "hidden_states"


class InlayLayer(nn.Module):
    """One layer, with the subblocks that it has: a norm and a mixer each, or nothing at all."""

    def __init__(self, common: Common, prefix: str) -> None:
        super().__init__()
        shape, layer = common.shape, extract_layer_index(prefix)
        self.subblocks: list[tuple[str, str]] = []
        for slot in SLOTS:
            entry = shape.parent_entry(layer, slot)
            if SUBBLOCKS.of(entry).absent:
                continue
            mixer = MIXERS_BY_KIND[entry["kind"]](entry, common, f"{prefix}.{MIXERS[slot]}")
            self.add_module(NORMS[slot], RMSNorm(shape.hidden, eps=common.epsilon))
            self.add_module(MIXERS[slot], mixer)
            self.subblocks.append((NORMS[slot], MIXERS[slot]))

    def forward(self, positions_N: Tensor, update_ND: Tensor, sum_ND: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The layer's last update and the sum before it; None as long as there was one term only."""
        for norm, mixer in self.subblocks:
            if sum_ND is None:
                sum_ND, normed_ND = update_ND, getattr(self, norm)(update_ND)
            else:
                normed_ND, sum_ND = getattr(self, norm)(update_ND, sum_ND)
            update_ND = getattr(self, mixer)(positions_N, normed_ND)
        return update_ND, sum_ND


@support_torch_compile(
    dynamic_arg_dims={"input_ids": 0, "positions": 0, "intermediate_tensors": 0, "inputs_embeds": 0},
)
class InlayModel(nn.Module):
    """Embedding, this rank's layers and, on the last rank, the final norm."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: InlayConfig = vllm_config.model_config.hf_config
        # How weights are stored is vLLM's own matter.
        values = {name: value for name, value in config.to_dict().items() if name != "quantization_config"}
        shape = shape_of(values, "float32")
        rope_parameters = config.family_config().rope_parameters
        _check(shape)
        common = Common(
            shape=shape,
            activation=config.base["hidden_act"],
            epsilon=config.rms_norm_eps,
            rope_parameters=rope_parameters,
            cache=vllm_config.cache_config,
            quantization=vllm_config.quant_config,
        )
        ranks = get_pp_group()
        has_embedding = ranks.is_first_rank or (shape.tied and ranks.is_last_rank)
        self.embed_tokens = VocabParallelEmbedding(shape.vocab, shape.hidden) if has_embedding else PPMissingLayer()
        self.start_layer, self.end_layer, self.layers = make_layers(
            shape.num_layers, lambda prefix: InlayLayer(common, prefix), prefix=maybe_prefix(prefix, "layers")
        )
        if not any(SUBBLOCKS.of(block["attention"]).masks(block["attention"]) for block in shape.blocks):
            # vLLM starts no model without a KV cache, so one is declared that nothing reads.
            self.unused = unused_attention(common, f"{prefix}.layers.0.{MIXERS['attention']}")
        self.norm = RMSNorm(shape.hidden, eps=common.epsilon) if ranks.is_last_rank else PPMissingLayer()
        self.make_empty_intermediate_tensors = make_empty_intermediate_tensors_factory([_BETWEEN_RANKS], shape.hidden)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Token ids [N] to hidden states [N, D]."""
        hidden_ND: Tensor = self.embed_tokens(input_ids)
        return hidden_ND

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor | IntermediateTensors:
        """Final normed hidden states [N, D]; on a rank that is not the last, what the next one begins with."""
        if not get_pp_group().is_first_rank:
            assert intermediate_tensors is not None
            update_ND = intermediate_tensors[_BETWEEN_RANKS]
        elif inputs_embeds is not None:
            update_ND = inputs_embeds
        else:
            assert input_ids is not None
            update_ND = self.embed_input_ids(input_ids)
        sum_ND: Tensor | None = None
        for layer in islice(self.layers, self.start_layer, self.end_layer):
            update_ND, sum_ND = layer(positions, update_ND, sum_ND)
        if not get_pp_group().is_last_rank:
            return IntermediateTensors({_BETWEEN_RANKS: update_ND if sum_ND is None else update_ND + sum_ND})
        if sum_ND is None:
            return self.norm(update_ND)
        normed_ND, _ = self.norm(update_ND, sum_ND)
        return normed_ND


class InlayForCausalLM(nn.Module, SupportsPP):
    """A child with its language-model head, as vLLM wants it.

    Raises ValueError that names every layer which vLLM cannot run, and the way out, before a weight is read.
    """

    packed_modules_mapping = {  # noqa: RUF012 (vLLM's own declaration)
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: InlayConfig = vllm_config.model_config.hf_config
        self.model = InlayModel(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.make_empty_intermediate_tensors = self.model.make_empty_intermediate_tensors
        if not get_pp_group().is_last_rank:
            self.lm_head = PPMissingLayer()
            return
        self.lm_head = ParallelLMHead(
            config.vocab_size,
            config.hidden_size,
            quant_config=vllm_config.quant_config,
            prefix=maybe_prefix(prefix, "lm_head"),
        )
        if config.tie_word_embeddings:
            self.lm_head = self.lm_head.tie_weights(self.model.embed_tokens)
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Token ids [N] to hidden states [N, D]."""
        return self.model.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor | IntermediateTensors:
        """As InlayModel.forward."""
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Logits [N, V] of hidden states [N, D]; None on a rank that vLLM does not gather them on."""
        logits_NV: Tensor | None = self.logits_processor(self.lm_head, hidden_states)
        return logits_NV

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Fill the modules from the child's file; returns the names of the parameters that were filled.

        Raises ValueError for a weight that no module of the child has.
        """
        mapper = WeightsMapper(orig_to_new_stacked=dict(SPLIT_WEIGHTS))
        names: set[str] = AutoWeightsLoader(self).load_weights(weights, mapper=mapper)
        return names


def _check(shape: Shape) -> None:
    found = [model_problem(shape, current_platform.device_type)]
    for layer in range(shape.num_layers):
        for slot in SLOTS:
            text = problem(shape.parent_entry(layer, slot), slot, shape)
            found.append(None if text is None else f"layer {layer}: {text}")
    texts = [text for text in found if text is not None]
    if texts:
        raise ValueError(" ".join(texts))
