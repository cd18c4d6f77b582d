"""What a rank holds while it recovers a model: counted from shapes, beside what a training really holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from inlay.distill.checkpoint import Checkpoint
from inlay.distill.globally import distill_globally
from inlay.distill.settings import GlobalSettings
from inlay.nas.errors import UserError
from inlay.nas.families import Shape, describe_folder, open_parent
from inlay.nas.job import Job
from inlay.nas.loop.recovery_memory import Recovery, check_recovery, recovery_facts
from inlay.nas.modeling import InlayForCausalLM
from inlay.nas.modeling.subblock_inlay import SLOTS
from inlay.nas.tables.architecture import PARENT_BLOCK
from inlay.nas.variants.entries import entries_of

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "hidden_act": "silu", "torch_dtype": "bfloat16",
    "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture
def large(tmp_path: Path) -> Any:
    """A parent of 8B parameters of which there is only the config."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    return describe_folder(tmp_path)


def job_for(parent: Any, memory: str = "64MiB", length: int = 256, **recover: Any) -> Job:
    return Job.from_dict(
        {
            "parent": str(parent.folder),
            "data": {
                "distill": {"path": "a.txt", "sequence_length": length},
                "validate": {"path": "b.txt", "tokens": "1M"},
            },
            "space": {"ffn": [{"width": 0.5}]},
            "budget": {"parameters": "0.9x"},
            "hardware": {"dtype": "bfloat16"},
            "cluster": {"memory_per_worker": memory},
            "recover": recover,
        }
    )


def of_shape(shape: Shape, entries: Any, **changes: Any) -> Recovery:
    values = {
        "dtype": "float32", "trains_all": True, "ranks": 1, "sharded": False, "tokens": 64, "parts": 1, "on_gpu": False,
        "twice": True, **changes,
    }  # fmt: skip
    return Recovery(shape, shape, entries, **values)


def test_weights_gradients_moments_and_copies_are_those_of_a_training(
    tiny_parent: Callable[..., Path], tmp_path: Path
) -> None:
    parent = open_parent(tiny_parent("llama"))
    blocks = (PARENT_BLOCK, ("attention:no_op", "ffn:width=16"), ("attention:kv_heads=1", "ffn:no_op"))
    entries = entries_of(parent.shape, blocks)
    torch.manual_seed(0)
    teacher = InlayForCausalLM(parent.config).requires_grad_(False).eval()
    child = InlayForCausalLM(parent.config.with_blocks(entries)).eval()
    ids = list(torch.randint(3, 200, (4, 2, 32)))
    settings = GlobalSettings(steps=3, learning_rate=1e-4)
    distill_globally(teacher, child, ids[:3], ids[3:], settings, checkpoint=Checkpoint(tmp_path))
    state = load_file(tmp_path / "training.safetensors")

    def held(*kinds: str) -> int:
        return sum(tensor.nbytes for name, tensor in state.items() if name.partition(".")[0] in kinds)

    parts = of_shape(parent.shape, tuple(entries)).held()
    assert parts["weights"] == held("weight")
    assert parts["moments"] == held("exp_avg", "exp_avg_sq")
    assert parts["best copy"] == held("best")
    assert parts["gradients"] == sum(own.grad.nbytes for own in child.parameters() if own.grad is not None)
    assert parts["parent"] == sum(own.nbytes for own in teacher.parameters())


def test_what_layers_keep_is_at_least_what_a_backward_needs_of_one(tiny_parent: Callable[..., Path]) -> None:
    """Against what autograd saves of a layer, within a factor of two; the mask, which grows otherwise, is left out."""
    parent = open_parent(tiny_parent("llama"))
    model = InlayForCausalLM(parent.config).eval()
    tokens, sequence = 64, 32
    context = model.model._context(torch.zeros(2, sequence, parent.shape.hidden), None, None, None)
    weights = {own.untyped_storage().data_ptr() for own in model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = torch.randn(2, sequence, parent.shape.hidden, requires_grad=True)
        model.model.layers[0](hidden, context)
    own = {slot: parent.shape.parent_entry(0, slot) for slot in SLOTS}
    one = of_shape(parent.shape, (own,), tokens=tokens, trains_all=False).held()["activations"]
    outputs = tokens * parent.shape.hidden * 4 * (parent.shape.num_layers + 1)
    assert 0.5 < (one - outputs) / sum(saved.values()) < 2


def test_ranks_share_all_but_a_layer_the_ends_and_what_they_work_on(large: Any) -> None:
    shape = large.shape
    own = tuple({slot: shape.parent_entry(layer, slot) for slot in SLOTS} for layer in range(shape.num_layers))
    whole, shared = (of_shape(shape, own, dtype="bfloat16", ranks=ranks, sharded=ranks > 1).held() for ranks in (1, 8))
    for name in ("parent", "weights", "gradients", "moments", "best copy"):
        assert shared[name] == -(-whole[name] // 8)
    assert shared["activations"] == whole["activations"]
    layer = 2 * 4096 + 4096 * (4096 + 1024) * 2 + 3 * 4096 * 14336
    ends = 2 * 128256 * 4096 + 4096
    assert shared["gathered"] == layer * 2 + layer * (2 + 4) + ends * 2
    assert "gathered" not in whole
    assert of_shape(shape, own, on_gpu=True).held()["best copy"] == 0


@pytest.mark.parametrize(
    ("memory", "length", "recover", "way_out"),
    [
        ("80GiB", 256, {}, "recover: {workers: 2, sharding: full} would fit"),
        ("24GiB", 256, {"workers": 2, "sharding": "full"}, "recover: {workers: 8, sharding: full} would fit"),
        ("8GiB", 65_536, {"workers": 1024, "sharding": "full", "batch_size": 1024},
         r"sequences of \d+ tokens would fit \(data.distill.sequence_length, recover.tail.sequence_length\)"),
        ("64MiB", 256, {"workers": 1024, "sharding": "full", "batch_size": 1024},
         r"workers with [\d.]+ GiB of memory would fit"),
    ],
)  # fmt: skip
def test_what_cannot_fit_is_refused_with_what_would(
    memory: str, length: int, recover: dict[str, Any], way_out: str, large: Any
) -> None:
    said = (
        r"recover: the least child of the space takes [\d.]+ GiB on each rank that trains it \(parent .+\), and "
        rf"cluster.memory_per_worker is [\d.]+ [GM]iB; {way_out}$"
    )
    with pytest.raises(UserError, match=said):
        check_recovery(job_for(large, memory, length, **recover), large)


def test_what_is_offered_is_taken(large: Any) -> None:
    check_recovery(job_for(large, "80GiB", workers=2, sharding="full"), large)
    check_recovery(job_for(large, "24GiB", workers=8, sharding="full"), large)
    check_recovery(job_for(large, tokens=0), large)
    told = recovery_facts(job_for(large, "24GiB", workers=8, sharding="full"), large)
    assert told.startswith(
        "a rank holds 28.8 GiB for a child as large as the parent (parent 1.87 GiB, weights 3.74 GiB"
    )
