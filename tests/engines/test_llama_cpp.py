"""Children in llama.cpp: packed into layers that it has, with the child's logits and the bytes that were promised."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engines.processes import left_in_group

from inlay.nas.engines.fitting import hardware_problems, shape_problems
from inlay.nas.engines.gguf.fields import NO_TOKENIZER
from inlay.nas.engines.gguf.metadata import model_fields, rotation_of
from inlay.nas.engines.gguf.packing import pack
from inlay.nas.engines.gguf.writer import file_bytes, write_file
from inlay.nas.engines.llama_cpp import LlamaCppEngine, process
from inlay.nas.engines.process import EngineProcess
from inlay.nas.errors import UserError
from inlay.nas.families import open_parent
from inlay.nas.formats.gguf import GGUF
from inlay.nas.formats.tensors import rounded
from inlay.nas.job.sections import Hardware
from inlay.nas.job.space import Space
from inlay.nas.modeling import InlayForCausalLM

NO_OP, MAP = {"kind": "no_op"}, {"kind": "linear"}
OWN = "own"
FEW = {"kind": "full", "kv_heads": 1, "heads": 2}
MIXED: list[tuple[Any, Any]] = [(1, 40), (NO_OP, 33), (MAP, 7), (2, NO_OP), (4, MAP), (NO_OP, NO_OP), (2, 48)]
CHILDREN: dict[str, list[tuple[Any, Any]]] = {
    "parent": [(OWN, OWN)] * 3,
    "alike": [(1, 20)] * 3,
    "fewer heads": [(2, 48), (FEW, 40), ({"kind": "full", "kv_heads": 1, "heads": 3}, 48)],
    "fewer heads everywhere": [(FEW, 48)] * 3,
    "mixed": MIXED,
    "no attention first": [(NO_OP, 48), (2, 48), (1, 48)],
    "no ffn last": [(2, 48), (2, 48), (2, NO_OP)],
    "maps alone": [(MAP, MAP)] * 3,
    "nothing": [(NO_OP, NO_OP)] * 3,
}
LONG_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


OTHER = os.environ.get("INLAY_LLAMA_PYTHON")
"""An interpreter with another binding of llama.cpp, such as llama-cpp-python."""


@pytest.fixture(
    scope="module", params=[None, *([OTHER] if OTHER else [])], ids=lambda python: "other" if python else ""
)
def llama(request: pytest.FixtureRequest) -> Iterator[EngineProcess]:
    with process(request.param) as engine:
        yield engine


def blocks_of(parent: Any, child: list[tuple[Any, Any]]) -> list[dict[str, Any]]:
    def entry(value: Any, slot: str) -> Any:
        if value == OWN:
            return parent.shape.parent_entry(0, slot)
        if isinstance(value, int):
            return {"kind": "full", "kv_heads": value} if slot == "attention" else {"kind": "gated", "width": value}
        return value

    return [{"attention": entry(a, "attention"), "ffn": entry(f, "ffn")} for a, f in child]


def made(parent: Any, blocks: list[dict[str, Any]], path: Path, form: str) -> tuple[Any, Any]:
    """A random child, written; the model and how it is packed."""
    torch.manual_seed(1)
    model: Any = InlayForCausalLM(parent.config.with_blocks(blocks)).float().eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, 1.0 if weight.ndim == 1 else 0.0, 0.1)
    state = model.state_dict()
    packed = pack(parent.shape, blocks, form)
    config = parent.config
    rotation = rotation_of(config.rope_parameters, config.head_dim)
    own = model_fields(packed, rotation, config.max_position_embeddings, config.rms_norm_eps, "child")
    write_file(path, packed, rotation, [*own, NO_TOKENIZER], lambda name, form: form.pack(state[name].numpy()))
    assert path.stat().st_size == file_bytes(packed, rotation, [*own, NO_TOKENIZER])
    return model, packed


def logits(llama: EngineProcess, path: Path, ids: list[int], exact: bool = True) -> tuple[Any, dict[str, Any]]:
    sizes = llama.ask("open", models={"m": str(path)}, tokens=len(ids), sequences=1, threads=1, exact=exact)["m"]
    found = path.with_suffix(".npy")
    llama.ask("logits", model="m", ids=ids, output=str(found))
    llama.ask("close", models=["m"])
    return np.load(found), sizes


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama untied, with biases": ("llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    "llama 3's rotation": ("llama", {"rope_parameters": LONG_ROPE}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
}


@pytest.mark.parametrize("child", list(CHILDREN))
@pytest.mark.parametrize("family", list(FAMILIES))
def test_logits_are_the_childs(
    llama: EngineProcess, tiny_parent: Callable[..., Path], tmp_path: Path, family: str, child: str
) -> None:
    name, config = FAMILIES[family]
    parent = open_parent(tiny_parent(name, **config))
    blocks = blocks_of(parent, CHILDREN[child])
    engine = LlamaCppEngine()
    refused = [p for b in blocks for slot in b if (p := engine.problem(b[slot], slot, parent.shape, "f32"))]
    if refused:
        assert name == "qwen3", refused
        return
    model, _ = made(parent, blocks, tmp_path / "child.gguf", "f32")
    ids = [random.Random(0).randrange(parent.shape.vocab) for _ in range(40)]
    with torch.inference_mode():
        own = model(torch.tensor([ids])).logits[0].numpy()
    theirs, _ = logits(llama, tmp_path / "child.gguf", ids)
    assert abs(own - theirs).max() < 5e-5
    assert (own.argmax(-1) == theirs.argmax(-1)).all()


@pytest.mark.parametrize("form", list(GGUF))
def test_bytes_are_those_that_were_promised(
    llama: EngineProcess, tiny_parent: Callable[..., Path], tmp_path: Path, form: str
) -> None:
    parent = open_parent(tiny_parent("llama", hidden_size=64, intermediate_size=96))
    blocks = blocks_of(parent, [(2, 64), (1, 32), (NO_OP, 96), (4, NO_OP)])
    _, packed = made(parent, blocks, tmp_path / "child.gguf", form)
    _, sizes = logits(llama, tmp_path / "child.gguf", list(range(30)), exact=False)
    storage = LlamaCppEngine().storage(form, "cpu")
    assert sizes["weights_bytes"] == storage.model(parent.shape, blocks) == packed.weights_bytes
    kv = sum(storage.kv(block["attention"], parent.shape, 1, 30) for block in blocks)
    assert sizes["kv_mib"] == round(kv / 2**20, 2)
    assert kv == packed.kv_bytes(sizes["cells"])


@pytest.mark.parametrize("form", list(GGUF))
def test_it_computes_with_the_rounded_weights(
    llama: EngineProcess, tiny_parent: Callable[..., Path], tmp_path: Path, form: str
) -> None:
    parent = open_parent(tiny_parent("llama", hidden_size=256, intermediate_size=512))
    blocks = blocks_of(parent, [(2, 512), (1, 256), (MAP, 512), (NO_OP, 256)])
    model, packed = made(parent, blocks, tmp_path / "child.gguf", form)
    assert {tensor.format for tensor in packed.tensors if len(tensor.shape) == 2 and tensor.sources} == {form}
    ids = [random.Random(0).randrange(parent.shape.vocab) for _ in range(40)]
    theirs = torch.tensor(logits(llama, tmp_path / "child.gguf", ids)[0])
    with torch.inference_mode():
        own = model(torch.tensor([ids])).logits[0]
        round_as(packed, model)
        same = model(torch.tensor([ids])).logits[0]
    assert kl_nats(same, theirs) < 5e-3
    if GGUF[form].block > 1:
        # What is left are the activations, which it rounds to 8 bits.
        assert kl_nats(same, theirs) < kl_nats(own, theirs) / 2


def kl_nats(own: torch.Tensor, other: torch.Tensor) -> float:
    p, q = (torch.log_softmax(logits.double(), -1) for logits in (own, other))
    return float((p.exp() * (p - q)).sum(-1).mean())


def problems(shape: Any, space: dict[str, Any], **hardware: Any) -> list[str]:
    chosen = Hardware(engine="llama.cpp", **hardware)
    found = [*hardware_problems(chosen), *shape_problems(chosen, shape, Space.model_validate(space))]
    return [str(problem) for problem in found]


def test_a_space_that_it_cannot_run_is_refused(tiny_parent: Callable[..., Path]) -> None:
    shape = open_parent(tiny_parent("llama", hidden_size=64, intermediate_size=96)).shape
    fine = {"attention": ["linear", "no_op"], "ffn": [{"width": 64}, "no_op"]}
    assert problems(shape, fine, format="q8_0") == []
    assert problems(shape, {"attention": [{"window": 8}]}) == [
        "space.attention: attention:window=8 at layer 0: llama.cpp has no window attention; it runs full, linear, "
        "gated and no_op, so take it out of the space, or search with `hardware.engine: transformers`"
    ]
    assert problems(shape, {"ffn": [{"width": 40}]}, format="q8_0") == [
        "space.ffn: ffn:width=40 at layer 0: q8_0 stores 32 numbers together, and ffn_down.weight has rows of 40; take "
        "a multiple of 32, or the format f16"
    ]


def test_formats_of_subblocks_that_it_cannot_store_are_refused(tiny_parent: Callable[..., Path]) -> None:
    shape = open_parent(tiny_parent("llama", hidden_size=64, intermediate_size=512)).shape
    mixed = {"attention": ["linear"], "ffn": [{"width": 256}], "formats": ["q8_0", "q4_K"]}
    assert problems(shape, mixed) == []
    assert problems(shape, mixed | {"ffn": [{"width": 320}], "formats": ["q4_K"]}) == []
    assert problems(shape, mixed | {"ffn": [{"width": 328}]}) == [
        "space.ffn: ffn:width=328@q8_0 at layer 0: q8_0 stores 32 numbers together, and ffn_down.weight has rows of "
        "328; take a multiple of 32, or the format f16"
    ]
    assert problems(shape, mixed, format="q8_0") == [
        "space.formats[0]: q8_0 is what everything is stored in already (hardware.format); leave it out"
    ]
    eager = Hardware()
    assert [str(problem) for problem in shape_problems(eager, shape, Space.model_validate(mixed))] == [
        f"space.formats[{place}]: {form} is not a format of transformers; search with `hardware.engine: llama.cpp`, or "
        "leave it out"
        for place, form in enumerate(("q8_0", "q4_K"))
    ]


def test_a_file_has_a_format_for_each_subblock(
    llama: EngineProcess, tiny_parent: Callable[..., Path], tmp_path: Path
) -> None:
    parent = open_parent(tiny_parent("llama", hidden_size=256, intermediate_size=512))
    blocks = blocks_of(parent, [(2, 512), (1, 256), (MAP, NO_OP)])
    forms = {(0, "attention"): "q8_0", (0, "ffn"): "q3_K", (1, "ffn"): "q4_0", (2, "attention"): "q6_K"}
    for (layer, slot), form in forms.items():
        blocks[layer] = {**blocks[layer], slot: {**blocks[layer][slot], "format": form}}
    model, packed = made(parent, blocks, tmp_path / "child.gguf", "bf16")
    ids = [random.Random(0).randrange(parent.shape.vocab) for _ in range(40)]
    theirs, sizes = logits(llama, tmp_path / "child.gguf", ids)
    stored = {tensor.name: tensor.format for tensor in packed.tensors}
    assert [stored[f"blk.{layer}.attn_output.weight"] for layer in range(3)] == ["q8_0", "bf16", "q6_K"]
    assert [stored[f"blk.{layer}.ffn_down.weight"] for layer in range(3)] == ["q3_K", "q4_0", "bf16"]
    assert stored["token_embd.weight"] == "bf16"
    assert sizes["weights_bytes"] == LlamaCppEngine().storage("bf16", "cpu").model(parent.shape, blocks)
    with torch.inference_mode():
        own = model(torch.tensor([ids])).logits[0]
        round_as(packed, model)
        same = model(torch.tensor([ids])).logits[0]
    assert kl_nats(same, torch.tensor(theirs)) < 2e-3 < kl_nats(own, torch.tensor(theirs)) / 2


def round_as(packed: Any, model: Any) -> None:
    """Gives a model the weights of its file."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    for tensor in packed.tensors:
        for source in tensor.sources:
            weights[source].copy_(rounded(weights[source], GGUF[tensor.format]))


def test_a_parent_that_it_cannot_run_is_refused(tiny_parent: Callable[..., Path]) -> None:
    sliding = open_parent(tiny_parent("mistral")).shape
    assert "no window attention" in problems(sliding, {"ffn": ["no_op"]})[0]
    untied = open_parent(tiny_parent("qwen3", tie_word_embeddings=False)).shape
    assert "tied to the embedding" in problems(untied, {"ffn": ["no_op"]})[0]
    narrow = open_parent(tiny_parent("llama", hidden_size=24, num_attention_heads=2)).shape
    assert "rows of 24" in problems(narrow, {"ffn": ["no_op"]}, format="q8_0")[0]


def test_a_format_and_a_device_that_it_does_not_have_are_refused(tiny_parent: Callable[..., Path]) -> None:
    shape = open_parent(tiny_parent("llama")).shape
    assert problems(shape, {"ffn": ["no_op"]}, format="parent") == [
        "hardware.format: parent is not a format of llama.cpp; write f32, f16, bf16, q8_0, q6_K, q5_K, q5_1, q5_0, "
        "q4_K, q4_1, q4_0, q3_K, q2_K or auto"
    ]
    assert problems(shape, {"ffn": ["no_op"]}, device="cuda") == [
        "hardware.device: cuda is not where inlay runs llama.cpp; write cpu"
    ]


def test_a_damaged_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(100))
    with process(None) as engine, pytest.raises(UserError, match=r"llama\.cpp: it does not load .*bad\.gguf: "):
        engine.ask("open", models={"m": str(bad)}, tokens=8, sequences=1, threads=1)


def test_an_interpreter_that_is_not_there_is_told() -> None:
    with pytest.raises(UserError, match=r"hardware\.python: /nowhere/python cannot be started \(No such file"):
        process("/nowhere/python")


def test_an_interpreter_without_it_is_told() -> None:
    bare = Path(sys.base_prefix) / "bin" / "python3"
    with process(str(bare)) as engine, pytest.raises(UserError, match=r"has no binding of llama\.cpp .*inlay\[gguf\]"):
        engine.ask("hello")


def test_an_engine_that_dies_or_hangs_leaves_a_sentence_and_no_process(tmp_path: Path) -> None:
    dies, hangs = tmp_path / "dies.py", tmp_path / "hangs.py"
    dies.write_text(
        "import os, sys\nsys.stdin.readline()\nprint('bad tensor', file=sys.stderr, flush=True)\nos.abort()\n"
    )
    hangs.write_text("import time\ntime.sleep(600)\n")
    with (
        EngineProcess("it", dies) as engine,
        pytest.raises(UserError, match="it was ended by SIGABRT at `x`: bad tensor"),
    ):
        engine.ask("x")
    with (
        EngineProcess("it", hangs, patience_seconds=0.2) as hung,
        pytest.raises(UserError, match=r"it gave no answer to `x` within 0\.2 s and was stopped"),
    ):
        hung.ask("x")
    assert not hung.is_alive


def test_what_an_engine_started_is_gone_with_it(tmp_path: Path) -> None:
    script = tmp_path / "starts.py"
    script.write_text(
        "import os, subprocess, sys\nsubprocess.Popen(['sleep', '600'])\nsys.stdin.readline()\nos.abort()\n"
    )
    with EngineProcess("it", script) as engine:
        with pytest.raises(UserError, match="it was ended by SIGABRT at `x`"):
            engine.ask("x")
        assert left_in_group(engine.pid) == []
