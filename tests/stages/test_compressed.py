"""Folders of compressed-tensors: what the package of that name makes of them, and what is refused before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file
from stages.test_export import EVALUATION
from torch import Tensor

from inlay.nas.errors import UserError
from inlay.nas.export.compressed import check_compressed, write_compressed_folder
from inlay.nas.export.tensors import write_tensors
from inlay.nas.families import Parent, open_parent
from inlay.nas.formats import FORMATS
from inlay.nas.formats.tensors import rounded
from inlay.nas.job import Job
from inlay.nas.modeling import InlayForCausalLM
from inlay.nas.pieces.assembled import TrainedModel
from inlay.nas.workspace import Workspace

MIXED = (
    ("attention:parent@int8", "ffn:parent@int4_g32"),
    ("attention:no_op", "ffn:parent@fp8"),
    ("attention:parent@int4_g128", "ffn:parent"),
)
FORMS = {
    (0, "self_attn"): "int8",
    (0, "mlp"): "int4_g32",
    (1, "mlp"): "fp8",
    (2, "self_attn"): "int4_g128",
}


@pytest.fixture
def job(tiny_parent: Callable[..., Path], small_job_of: Callable[[Path], Job]) -> Job:
    return small_job_of(tiny_parent("llama", hidden_size=128, intermediate_size=256, attention_bias=True))


@pytest.fixture
def parent(job: Job) -> Parent:
    return open_parent(Path(job.parent))


def written(job: Job, parent: Parent, architecture: Any, folder: Path, form: str = "") -> Path:
    place = Workspace(folder / "search")
    model = TrainedModel(architecture, place.store.put_blob((parent.folder / "model.safetensors").read_bytes()))
    check_compressed(parent, architecture, form)
    return write_compressed_folder(place, parent, model, folder / "child", EVALUATION, job, form)


def decompressed(folder: Path) -> dict[str, Tensor]:
    """Every tensor as the package gives it, found by what config.json says."""
    config = QuantizationConfig.model_validate(
        json.loads((folder / "config.json").read_text())["quantization_config"] | {"quant_method": "compressed-tensors"}
    )
    found = load_file(folder / "model.safetensors")
    for scheme in config.config_groups.values():
        for module in scheme.targets:
            own = {name: found.pop(name) for name in list(found) if name.startswith(f"{module}.weight")}
            local = {name.removeprefix(f"{module}."): tensor for name, tensor in own.items()}
            package = BaseCompressor.get_value_from_registry(scheme.format)
            found[f"{module}.weight"] = package.decompress(local, scheme)["weight"]
    return found


def expected(parent: Parent) -> dict[str, Tensor]:
    own = load_file(parent.folder / "model.safetensors")
    for (layer, mixer), form in FORMS.items():
        for name in own:
            if name.startswith(f"model.layers.{layer}.{mixer}.") and own[name].ndim == 2:
                own[name] = rounded(own[name], FORMATS[form])
    return own


def test_the_package_reads_every_number_that_rounding_says(job: Job, parent: Parent, tmp_path: Path) -> None:
    folder = written(job, parent, MIXED, tmp_path)
    found, wanted = decompressed(folder), expected(parent)
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
    config = json.loads((folder / "config.json").read_text())
    assert not any("format" in entry for block in config["blocks"] for entry in block.values())
    told = config["quantization_config"]
    assert told["format"] == "mixed-precision"
    assert {group["format"] for group in told["config_groups"].values()} == {"naive-quantized", "pack-quantized"}
    assert "model.layers.2.mlp.up_proj" in told["ignore"]
    assert (folder / "inlay_recipe.json").is_file()
    card = (folder / "README.md").read_text()
    assert "vLLM has code for fp8 and int8 on GPUs alone." in card
    assert "library_name: vllm" in card
    with pytest.raises(UserError, match="the weights are quantised"):
        open_parent(folder)


def test_transformers_runs_the_folder_as_the_rounded_model(job: Job, parent: Parent, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    between = ("attention:parent@int4_g128", "ffn:parent@fp8")
    folder = written(job, parent, (MIXED[0], between, MIXED[2]), tmp_path)
    found: Any = AutoModelForCausalLM.from_pretrained(folder)
    own: Any = InlayForCausalLM(parent.config)
    own.load_state_dict(decompressed(folder), strict=False)
    own.tie_weights()
    ids = torch.arange(3, 60)[None]
    with torch.inference_mode():
        torch.testing.assert_close(found(ids).logits, own.eval()(ids).logits, rtol=1e-4, atol=1e-5)


def test_one_type_for_all_that_the_search_did_not_choose(job: Job, parent: Parent, tmp_path: Path) -> None:
    nothing = "attention:no_op"
    blocks = (("attention:parent@int8", "ffn:parent"), (nothing, "ffn:no_op"), (nothing, "ffn:parent"))
    folder = written(job, parent, blocks, tmp_path, "int4_g128")
    told = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert told["format"] == "pack-quantized"
    targets = {group["weights"]["num_bits"]: group["targets"] for group in told["config_groups"].values()}
    assert targets[8] == [f"model.layers.0.self_attn.{name}_proj" for name in "qkvo"]
    names = ("gate", "up", "down")
    assert targets[4] == [f"model.layers.{layer}.mlp.{name}_proj" for layer in (0, 2) for name in names]


def test_what_cannot_be_stored_so_is_named_by_layer(parent: Parent) -> None:
    blocks = (
        ("attention:parent", "ffn:width=80"),
        ("attention:parent@q4_0", "ffn:parent"),
        ("attention:parent", "ffn:no_op"),
    )
    with pytest.raises(UserError) as told:
        check_compressed(parent, blocks, "int4_g32")
    assert str(told.value) == (
        "--format compressed-tensors: layer 0: int4_g32 stores 32 numbers together, and mlp.down_proj.weight has "
        "rows of 80; take a multiple of 32, or another format\n"
        "  layer 1: vLLM has no q4_0; its formats are int8, fp8, int4_g32, int4_g128"
    )
    with pytest.raises(
        UserError, match="the search chose no formats; say by --type how all subblocks are stored, int8"
    ):
        check_compressed(parent, (("attention:parent", "ffn:parent"),) * 3, "")


def test_large_models_are_several_files(tmp_path: Path) -> None:
    tensors = {f"t{number}": torch.randn(10, generator=torch.Generator().manual_seed(number)) for number in range(5)}
    write_tensors(tmp_path, iter(tensors.items()), most_shard_bytes=80)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == [f"model-{n:05}-of-00003.safetensors" for n in (1, 2, 3)]
    assert index["metadata"] == {"total_size": 200}
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors[name])
    assert {path.name for path in tmp_path.iterdir()} == {*index["weight_map"].values(), "model.safetensors.index.json"}
