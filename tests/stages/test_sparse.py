"""2:4 in a search: what a folder of packed matrices computes, what is refused, and from a job to that folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from stages.test_export import EVALUATION

from inlay.nas.engines.registry import ENGINES
from inlay.nas.errors import UserError
from inlay.nas.export.compressed import check_compressed
from inlay.nas.export.gguf import check_gguf
from inlay.nas.export.packed import check_packed, write_packed_folder
from inlay.nas.families import Parent, open_parent
from inlay.nas.formats.sparse import SPARSE, TWO_OF_FOUR
from inlay.nas.formats.tensors import rounded
from inlay.nas.job import Job
from inlay.nas.modeling import InlayForCausalLM
from inlay.nas.pieces.assembled import TrainedModel
from inlay.nas.workspace import Workspace

Run = Callable[..., Any]
HALF = (
    ("attention:parent@2:4", "ffn:parent"),
    ("attention:parent", "ffn:parent@2:4"),
    ("attention:parent", "ffn:parent"),
)


@pytest.fixture
def job(tiny_parent: Callable[..., Path], small_job_of: Callable[[Path], Job]) -> Job:
    return small_job_of(tiny_parent("llama", hidden_size=128, intermediate_size=172, attention_bias=True))


@pytest.fixture
def parent(job: Job) -> Parent:
    return open_parent(Path(job.parent))


def test_a_folder_is_as_small_as_it_says_and_computes_what_rounding_says(
    job: Job, parent: Parent, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    place = Workspace(tmp_path / "search")
    model = TrainedModel(HALF, place.store.put_blob((parent.folder / "model.safetensors").read_bytes()))
    check_packed(parent, HALF)
    folder = write_packed_folder(place, parent, model, tmp_path / "child", EVALUATION, job)
    found: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    wanted = load_file(parent.folder / "model.safetensors")
    names = [
        name
        for name, tensor in wanted.items()
        if tensor.ndim == 2 and name.startswith(("model.layers.0.self_attn.", "model.layers.1.mlp."))
    ]
    assert len(names) == 7
    for name in names:
        wanted[name] = rounded(wanted[name], SPARSE[TWO_OF_FOUR])
        module = found.get_submodule(name.removesuffix(".weight"))
        assert torch.equal(module.numbers(torch.float32), wanted[name]), name
    own: Any = InlayForCausalLM(parent.config)
    own.load_state_dict(wanted, strict=False)
    own.tie_weights()
    ids = torch.arange(3, 30)[None]
    with torch.inference_mode():
        torch.testing.assert_close(found(ids).logits, own.float().eval()(ids).logits, rtol=1e-4, atol=1e-5)
    # The file is what budgets count, but for its header.
    storage, config = ENGINES["transformers"].storage("parent", "cpu"), found.config
    stored = sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())
    assert config.packed
    assert storage.model(parent.shape, config.blocks) == stored
    with pytest.raises(UserError, match=r"matrices are packed in 2:4 .*give the search's own `child` folder, or what"):
        open_parent(folder)


def test_who_cannot_take_it_says_so(parent: Parent) -> None:
    plain = (("attention:parent", "ffn:parent"),) * 3
    with pytest.raises(UserError, match=r"--format packed: nothing of this child is in 2:4; write --format hf"):
        check_packed(parent, plain)
    with pytest.raises(UserError, match=r"--format packed: int8 cannot stay packed in PyTorch, only 2:4; write the"):
        check_packed(parent, (("attention:parent", "ffn:parent@int8"), *plain[1:]))
    with pytest.raises(UserError, match=r"layer 0: vLLM has no 2:4; its formats are int8"):
        check_compressed(parent, HALF, "")
    with pytest.raises(UserError, match=r"llama.cpp has no 2:4; its formats are f32"):
        check_gguf(parent, HALF, "f16")


@pytest.mark.parametrize("engine", ["llama.cpp", "vllm"])
def test_other_engines_are_refused_by_name(engine: str, job: Job, tmp_path: Path, inlay_here: Run) -> None:
    values = job.model_dump(mode="json", exclude_defaults=True)
    values |= {"space": {"formats": [TWO_OF_FOUR]}, "hardware": {"engine": engine}, "budget": {"weights": "0.8x"}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
    done = inlay_here("validate", "job.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert (
        f"space.formats[0]: 2:4 is not a format of {engine}; search with `hardware.engine: transformers`, or leave it "
        "out" in " ".join(done.stderr.split())
    )


def test_rows_that_are_no_whole_groups_are_told(job: Job, tmp_path: Path, inlay_here: Run) -> None:
    values = job.model_dump(mode="json", exclude_defaults=True)
    values |= {"space": {"ffn": [{"width": 86}], "formats": [TWO_OF_FOUR], "multiple": 2}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
    done = inlay_here("validate", "job.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert (
        "ffn:width=86@2:4 at layer 0: 2:4 stores 4 numbers together, and mlp.down_proj.weight has rows of 86; take a "
        "multiple of 4, or no format there" in " ".join(done.stderr.split())
    )


@pytest.mark.slow
def test_from_a_job_to_a_packed_folder(
    tmp_path: Path, whole_job: Callable[[], dict[str, Any]], inlay_here: Run
) -> None:
    values = whole_job()
    values["space"] = {"ffn": [{"width": 0.5}], "formats": [TWO_OF_FOUR], "multiple": 4}
    values["distill"] = {"tokens": "4k"}
    values["score"] = {"pairs": 2}
    values["solve"] = {"pool": 2, "corrections": 0}
    values["budget"] = {"memory": "0.6x"}
    values["recover"] = {"tokens": "8k", "learning_rate": 3e-3, "probes": 0}
    text = yaml.safe_dump(values)
    # As people write it: without quotes it is base 60 to YAML.
    (tmp_path / "job.yaml").write_text(text.replace(f"'{TWO_OF_FOUR}'", TWO_OF_FOUR))
    done = inlay_here("run", "job.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    place = tmp_path / "job.search"
    evaluation = json.loads((place / "run.json").read_text())["evaluation"]
    chosen = evaluation[evaluation["chosen"]]
    labels = [label for block in chosen["architecture"] for label in block]
    assert any(label.endswith("@2:4") for label in labels), labels
    assert chosen["kl_nats"] > 0
    assert inlay_here("evaluate", "job.search", cwd=tmp_path).returncode == 0
    exported = inlay_here("export", "job.search", "--format", "packed", "-o", "child", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    stored = sum(tensor.nbytes for tensor in load_file(tmp_path / "child" / "model.safetensors").values())
    assert stored == chosen["weights_bytes"]
    trained = load_file(place / "child" / "model.safetensors")
    from transformers import AutoModelForCausalLM

    found: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "child")
    for name, module in found.named_modules():
        if hasattr(module, "numbers"):
            # What recovery ended with.
            assert torch.equal(module.numbers(torch.float32), trained[f"{name}.weight"].float()), name
