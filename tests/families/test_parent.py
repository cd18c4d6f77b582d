"""Opening sound parents of every family: shape, states, digest, tokenizer."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from inlay.nas.families import FAMILIES, Parent, open_parent
from inlay.nas.families.checkpoint import INDEX
from inlay.nas.families.shape import EMBEDDING, HEAD, SLOTS
from inlay.nas.modeling import InlayForCausalLM

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    "llama-head_dim": ("llama", {"head_dim": 6}),
    "llama-unread-window": ("llama", {"sliding_window": 8}),
    "llama-llama3-rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "mistral-window": ("mistral", {}),
    "mistral-full": ("mistral", {"sliding_window": None}),
    "qwen2-biases-untied": ("qwen2", {}),
    "qwen2-max_window_layers": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    ),
    "qwen3-head_dim": ("qwen3", {}),
    "qwen3-layer_types": (
        "qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "attention_bias": True,
        },
    ),
    "qwen3-yarn-rope": (
        "qwen3",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "bfloat16": ("llama", {"dtype": "bfloat16"}),
    "float16": ("qwen2", {"dtype": "float16"}),
    "sharded": ("qwen3", {"max_shard_size": "20KB"}),
}


@pytest.fixture(params=CASES)
def folder(request: pytest.FixtureRequest, tiny_parent: Any) -> Path:
    family, overrides = CASES[request.param]
    path: Path = tiny_parent(family, **overrides)
    return path


class Contract:
    """What holds of every parent."""

    def test_states_come_in_another_dtype(self, folder: Path) -> None:
        parent = open_parent(folder)
        states = (parent.layer_state(1, torch.float64), parent.ends_state(torch.float64))
        assert {tensor.dtype for state in states for tensor in state.values()} == {torch.float64}

    def test_config_is_the_parents_own(self, folder: Path) -> None:
        parent = open_parent(folder)
        for layer, block in enumerate(parent.config.blocks):
            assert block == {slot: parent.shape.parent_entry(layer, slot) for slot in SLOTS}
        assert parent.config.dtype == getattr(torch, parent.shape.dtype)
        assert parent.config.rope_parameters == AutoConfig.from_pretrained(folder).rope_parameters

    def test_numbers_are_finite(self, folder: Path) -> None:
        open_parent(folder).check_finite()

    def test_tokenizer(self, folder: Path) -> None:
        tokenizer = open_parent(folder).tokenizer()
        ids = tokenizer("Once.").input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == "Once."

    def test_it_can_be_pickled(self, folder: Path) -> None:
        parent = open_parent(folder)
        again = pickle.loads(pickle.dumps(parent))
        assert again == parent
        assert again.digest == parent.digest


class TestEveryParent(Contract):
    """The contract of a family whose layers are dense, for each of its quirks."""

    def test_states_are_the_tensors_of_transformers(self, folder: Path) -> None:
        parent = open_parent(folder)
        expected = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()
        if parent.shape.tied:
            del expected[HEAD]
        state = _whole_state(parent)
        assert state.keys() == expected.keys()
        for name, tensor in expected.items():
            assert state[name].dtype == tensor.dtype == getattr(torch, parent.shape.dtype)
            assert state[name].equal(tensor), name

    def test_logits_are_those_of_transformers(self, folder: Path) -> None:
        parent = open_parent(folder)
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
        ours = InlayForCausalLM.from_pretrained(
            None, config=parent.config, state_dict=_whole_state(parent), dtype=getattr(torch, parent.shape.dtype)
        ).eval()
        ids_BS = torch.randint(0, parent.shape.vocab, (2, 40), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert ours(ids_BS).logits.equal(theirs(ids_BS).logits)


OF_EXPERTS = ("mixtral", "qwen3_moe")


class TestParentsOfExperts(Contract):
    """Of families with experts, which Transformers holds otherwise than files do: tests/modeling/test_experts.py."""

    @pytest.fixture(params=OF_EXPERTS)
    def folder(self, request: pytest.FixtureRequest, tiny_parent: Any) -> Path:
        path: Path = tiny_parent(request.param)
        return path

    def test_all_of_the_files_is_read(self, folder: Path) -> None:
        stored = [tensor for path in folder.glob("*.safetensors") for tensor in load_file(path).values()]
        read = list(_whole_state(open_parent(folder)).values())
        assert sum(tensor.numel() for tensor in read) == sum(tensor.numel() for tensor in stored)
        assert sum(tensor.double().sum() for tensor in read) == pytest.approx(
            float(sum(tensor.double().sum() for tensor in stored))
        )


def test_every_family_is_among_the_cases() -> None:
    assert {family for family, _ in CASES.values()} | {*OF_EXPERTS} == set(FAMILIES)


def test_a_trained_parent_opens(trained_parent: Path) -> None:
    parent = open_parent(trained_parent)
    parent.check_finite()
    assert len(parent.tokenizer()) <= parent.shape.vocab


def test_opening_imports_neither_torch_nor_transformers(tiny_parent: Any) -> None:
    code = (
        "import sys; from inlay.nas.families import open_parent; parent = open_parent(sys.argv[1]); parent.digest;"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-P", "-c", code, str(tiny_parent("llama"))], check=True)


def test_digest_does_not_depend_on_shards_or_place_or_layout(tiny_parent: Any, tmp_path: Path) -> None:
    single, sharded = tiny_parent("qwen3"), tiny_parent("qwen3", max_shard_size="20KB")
    assert (sharded / INDEX).is_file()
    copy = tmp_path / "copy"
    shutil.copytree(single, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(dict(reversed(config.items()))))
    digests = {open_parent(folder).digest for folder in (single, sharded, copy)}
    assert len(digests) == 1


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_digest_and_fingerprint_change_with_every_file(tiny_parent: Any, tmp_path: Path, file: str) -> None:
    folder = tmp_path / "parent"
    shutil.copytree(tiny_parent("llama"), folder)
    before = open_parent(folder)
    digest, fingerprint = before.digest, before.fingerprint
    assert open_parent(folder).fingerprint == fingerprint
    if file == "model.safetensors":
        content = bytearray((folder / file).read_bytes())
        content[-1] ^= 1
    else:
        content = bytearray(json.dumps({**json.loads((folder / file).read_text()), "added": 1}).encode())
    (folder / file).write_bytes(content)
    after = open_parent(folder)
    assert after.digest != digest
    assert after.fingerprint != fingerprint


def test_a_tied_embedding_stored_as_the_head_alone(tiny_parent: Any, tmp_path: Path) -> None:
    folder = _renamed(tiny_parent("llama"), tmp_path, lambda name: HEAD if name == EMBEDDING else name)
    assert open_parent(folder).ends_state()[EMBEDDING].equal(open_parent(tiny_parent("llama")).ends_state()[EMBEDDING])


def test_constants_of_older_checkpoints_are_ignored(tiny_parent: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "parent"
    shutil.copytree(tiny_parent("llama"), folder)
    state = load_file(folder / "model.safetensors")
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(state, folder / "model.safetensors")
    assert len(open_parent(folder).layer_state(0)) == len(open_parent(tiny_parent("llama")).layer_state(0))


def test_a_layer_is_read_into_memory_of_its_own(tiny_parent: Any, tmp_path: Path) -> None:
    folder = tmp_path / "parent"
    shutil.copytree(tiny_parent("llama"), folder)
    state = open_parent(folder).layer_state(0)
    before = {name: tensor.clone() for name, tensor in state.items()}
    size = (folder / "model.safetensors").stat().st_size
    (folder / "model.safetensors").write_bytes(bytes(size))
    assert all(state[name].equal(before[name]) for name in state)


def _whole_state(parent: Parent) -> dict[str, torch.Tensor]:
    state = parent.ends_state()
    for layer in range(parent.shape.num_layers):
        state |= {f"model.layers.{layer}.{name}": tensor for name, tensor in parent.layer_state(layer).items()}
    return state


def _renamed(source: Path, tmp_path: Path, rename: Any) -> Path:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "renamed"
    shutil.copytree(source, folder)
    state = load_file(folder / "model.safetensors")
    save_file({rename(name): tensor for name, tensor in state.items()}, folder / "model.safetensors")
    return folder
