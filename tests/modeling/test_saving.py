"""Saved models load again: with inlay imported, and with only the files that stand beside the weights."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

import inlay.nas.modeling
from inlay.nas.modeling import MODELING_FILES, InlayForCausalLM
from inlay.nas.modeling.registration import register

CHANGES: dict[int, dict[str, Any]] = {
    0: {"attention": {"kind": "no_op"}, "ffn": {"kind": "gated", "width": 8}},
    1: {"attention": {"kind": "window", "kv_heads": 1, "window": 6, "sinks": 2}, "ffn": {"kind": "no_op"}},
    2: {"attention": {"kind": "linear"}, "ffn": {"kind": "linear"}},
}

ALONE = """
import sys
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
assert not any(name == "inlay" or name.startswith("inlay.") for name in sys.modules), "inlay was imported"
ids = torch.arange(2, 22)[None]
torch.save({
    "logits": model(ids).logits.detach(),
    "ids": model.generate(ids, do_sample=False, max_new_tokens=12),
    "cache": type(model.generate(ids, max_new_tokens=2, return_dict_in_generate=True).past_key_values).__name__,
}, sys.argv[2])
"""


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_round_trip(family: str, tmp_path: Path, make_child: Any) -> None:
    """Tied (llama, qwen3) and untied (mistral, qwen2) children: same logits, same bytes."""
    register()
    child = make_child(family, CHANGES)
    child.save_pretrained(tmp_path / "first")
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "first", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(loaded) is InlayForCausalLM
    loaded.save_pretrained(tmp_path / "second")
    assert digest(tmp_path / "first") == digest(tmp_path / "second")
    ids_BS = torch.randint(2, 97, (2, 20))
    with torch.no_grad():
        assert torch.equal(loaded(ids_BS).logits, child(ids_BS).logits)
    with safe_open(tmp_path / "first" / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert ("lm_head.weight" in names) == (not child.config.tie_word_embeddings)
    assert "model.layers.1.self_attn.k_proj.weight" in names
    assert "model.layers.2.mlp.weight" in names
    assert not any(
        name.startswith(("model.layers.0.self_attn", "model.layers.0.input", "model.layers.1.mlp")) for name in names
    )
    if child.config.tie_word_embeddings:
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_shards_load_equal(tmp_path: Path, make_child: Any) -> None:
    register()
    child = make_child("qwen3", CHANGES)
    child.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ids_BS = torch.randint(2, 97, (2, 20))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(ids_BS).logits, child(ids_BS).logits)


def test_layers_may_be_spread(tmp_path: Path, make_child: Any) -> None:
    """accelerate's hooks move what a layer is given; here one layer rests on disk."""
    register()
    child = make_child("llama", CHANGES)
    child.save_pretrained(tmp_path)
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu", "model.rotary_emb": "cpu"}
    places |= {f"model.layers.{i}": "disk" if i == 1 else "cpu" for i in range(4)}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "offload")
    ids_BS = torch.randint(2, 97, (2, 20))
    with torch.no_grad():
        assert torch.equal(loaded(ids_BS).logits, child(ids_BS).logits)


def test_bfloat16_is_kept(tmp_path: Path, make_child: Any) -> None:
    register()
    child = make_child("llama", CHANGES).to(torch.bfloat16)
    child.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert loaded.model.rotary_emb.inv_freq.dtype == torch.float32


def test_embeddings_can_be_resized(tmp_path: Path, make_child: Any) -> None:
    register()
    child = make_child("qwen2", CHANGES)
    child.resize_token_embeddings(111)
    child.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (loaded.config.vocab_size, loaded.lm_head.weight.shape[0]) == (111, 111)


@pytest.mark.slow
def test_the_shipped_files_suffice(tmp_path: Path, make_child: Any) -> None:
    """A process that cannot import inlay loads the child by its files alone, and generates the same."""
    child = make_child("llama", CHANGES)
    child.config.auto_map = {
        "AutoConfig": "configuration_inlay.InlayConfig",
        "AutoModelForCausalLM": "modeling_inlay.InlayForCausalLM",
    }
    folder = tmp_path / "child"
    child.save_pretrained(folder)
    source = Path(inlay.nas.modeling.__file__).parent
    for name in MODELING_FILES:
        shutil.copy(source / name, folder / name)
    bare = tmp_path / "bare"  # stands in for an environment without inlay: an import of it fails
    bare.mkdir()
    (bare / "inlay.py").write_text("raise ImportError('inlay is not installed here')\n")
    subprocess.run(
        [sys.executable, "-c", ALONE, str(folder), str(tmp_path / "out.pt")],
        check=True,
        cwd=bare,
        env={"PATH": "", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(bare)},
    )
    got = torch.load(tmp_path / "out.pt")
    ids_BS = torch.arange(2, 22)[None]
    with torch.no_grad():
        assert torch.equal(got["logits"], child(ids_BS).logits)
    assert torch.equal(got["ids"], child.generate(ids_BS, do_sample=False, max_new_tokens=12))
    assert got["cache"] == "InlayCache"
