"""DeciLM folders: each consumer's reader, written anew here, makes of its folder what the child is in memory."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import Tensor
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu
from transformers import AutoConfig, AutoTokenizer

from inlay.cluster.store import Store
from inlay.nas.cli import export as export_cli
from inlay.nas.cli import main
from inlay.nas.errors import UserError
from inlay.nas.export.deci import check_deci, write_deci_folder
from inlay.nas.export.deci_consumers import CONSUMERS, UnfitError, ffn_mult_of
from inlay.nas.export.tensors import copy_tensors
from inlay.nas.families import Parent, open_parent
from inlay.nas.job import Job
from inlay.nas.modeling import InlayForCausalLM
from inlay.nas.pieces.assembled import TrainedModel, own_state
from inlay.nas.pieces.model_files import ModelFiles
from inlay.nas.stages.export import FORMATS
from inlay.nas.tables.architecture import PARENT_BLOCK, Blocks
from inlay.nas.variants.entries import entries_of
from inlay.nas.workspace import Workspace

FIGURES = {
    "kl_nats": 0.1, "perplexity": 2.0, "top1_agreement": 0.9, "parameters": 1, "weights_bytes": 4,
    "prefill_tokens_per_second": 1.0, "decode_tokens_per_second": 1.0,
}  # fmt: skip
IDS = torch.arange(3, 45)[None]

MIXED: Blocks = (
    ("attention:parent", "ffn:width=256"),
    ("attention:kv_heads=1", "ffn:parent"),
    ("attention:no_op", "ffn:width=256"),
    ("attention:parent", "ffn:no_op"),
    ("attention:no_op", "ffn:no_op"),
)
SAME: Blocks = tuple((attention.replace("kv_heads=1", "parent"), ffn) for attention, ffn in MIXED)
EXACT: Blocks = (("attention:parent", "ffn:width=200"), *MIXED[1:])
LINEAR: Blocks = (("attention:no_op", "ffn:linear"), ("attention:linear", "ffn:parent"), *MIXED, *MIXED[1:2])
BIASED: Blocks = (*SAME, ("attention:kv_heads=4", "ffn:parent"))
CASES = [
    ("vllm", "llama", {}, EXACT),
    ("vllm", "qwen2", {}, EXACT),
    ("vllm", "llama", {"attention_bias": True, "mlp_bias": True}, EXACT),
    ("vllm", "mistral", {"sliding_window": None, "head_dim": 16}, EXACT),
    ("tensorrt-llm", "llama", {}, LINEAR),
    ("tensorrt-llm", "mistral", {"sliding_window": None, "head_dim": 16}, LINEAR),
    ("sglang", "llama", {"attention_bias": True}, SAME),
    ("sglang", "mistral", {"sliding_window": None}, SAME),
    ("mlx", "llama", {}, LINEAR),
    ("mlx", "llama", {"attention_bias": True, "mlp_bias": True}, BIASED),
]


class Reader:
    """A DeciLM folder as torch operations; what a consumer does in its own way is asked of its subclass."""

    linear_names = ("", "")

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.state: dict[str, Tensor] = {}
        for file in folder.glob("*.safetensors"):
            self.state |= load_file(file)
        self.unread = set(self.state)
        assert self.config["architectures"] == ["DeciLMForCausalLM"]
        assert self.config["model_type"] == "nemotron-nas"
        assert len(self.config["block_configs"]) == self.config["num_hidden_layers"]

    def logits(self, ids_BS: Tensor) -> Tensor:
        embedding_VD = self.take("model.embed_tokens.weight")
        hidden_BSD = embedding_VD[ids_BS]
        for layer, block in enumerate(self.config["block_configs"]):
            for slot, norm, run in (
                ("attention", "input_layernorm", self.attention),
                ("ffn", "post_attention_layernorm", self.ffn),
            ):
                if not block[slot]["no_op"]:
                    prefix = f"model.layers.{layer}."
                    normed_BSD = self.norm(f"{prefix}{norm}.weight", hidden_BSD)
                    hidden_BSD = hidden_BSD + run(prefix, block[slot], normed_BSD)
        hidden_BSD = self.norm("model.norm.weight", hidden_BSD)
        head_VD = embedding_VD if self.config["tie_word_embeddings"] else self.take("lm_head.weight")
        assert not self.unread, "a reader that is strict would refuse them"
        return linear(hidden_BSD, head_VD)

    def take(self, name: str) -> Tensor:
        self.unread.discard(name)
        return self.state[name]

    def norm(self, name: str, hidden_BSD: Tensor) -> Tensor:
        return rms_norm(hidden_BSD, hidden_BSD.shape[-1:], self.take(name), self.config["rms_norm_eps"])

    def projected(self, name: str, hidden: Tensor, width: int, bias: bool) -> Tensor:
        assert self.state[f"{name}.weight"].shape == (width, hidden.shape[-1])
        return linear(hidden, self.take(f"{name}.weight"), self.take(f"{name}.bias") if bias else None)

    def attention(self, prefix: str, choice: dict[str, Any], normed_BSD: Tensor) -> Tensor:
        config, heads, width = self.config, self.config["num_attention_heads"], self.head_dim()
        if choice["replace_with_linear"]:
            return self.projected(f"{prefix}self_attn.{self.linear_names[0]}", normed_BSD, config["hidden_size"], False)
        kv_heads = heads // choice["n_heads_in_group"]
        qkv_bias, o_bias = self.attention_biases()
        query, key, value = (
            self.projected(f"{prefix}self_attn.{name}_proj", normed_BSD, count * width, qkv_bias)
            .unflatten(-1, (count, width))
            .transpose(1, 2)
            for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        mixed = scaled_dot_product_attention(
            self.rotated(query), self.rotated(key), value, is_causal=True, enable_gqa=True
        )
        mixed_BSD = mixed.transpose(1, 2).flatten(-2)
        return self.projected(f"{prefix}self_attn.o_proj", mixed_BSD, config["hidden_size"], o_bias)

    def ffn(self, prefix: str, choice: dict[str, Any], normed_BSD: Tensor) -> Tensor:
        hidden, bias = self.config["hidden_size"], self.ffn_bias()
        assert self.config["hidden_act"] == "silu"
        if choice["replace_with_linear"]:
            return self.projected(f"{prefix}mlp.{self.linear_names[1]}", normed_BSD, hidden, False)
        width = self.width(choice)
        gate = self.projected(f"{prefix}mlp.gate_proj", normed_BSD, width, bias)
        up = self.projected(f"{prefix}mlp.up_proj", normed_BSD, width, bias)
        return self.projected(f"{prefix}mlp.down_proj", silu(gate) * up, hidden, bias)

    def rotated(self, heads_BHSK: Tensor) -> Tensor:
        assert self.config["rope_scaling"] is None
        half = heads_BHSK.shape[-1] // 2
        frequency = self.config["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.outer(torch.arange(heads_BHSK.shape[2], dtype=torch.float64), frequency)
        cos, sin = angle.cos().float(), angle.sin().float()
        first, second = heads_BHSK[..., :half], heads_BHSK[..., half:]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def head_dim(self) -> int:
        return int(self.config["head_dim"])

    def width(self, choice: dict[str, Any]) -> int:
        return ffn_mult_to_intermediate_size(choice["ffn_mult"], self.config["hidden_size"])

    def attention_biases(self) -> tuple[bool, bool]:
        return (self.config["attention_bias"],) * 2

    def ffn_bias(self) -> bool:
        return bool(self.config["mlp_bias"])


class VllmReader(Reader):
    def width(self, choice: dict[str, Any]) -> int:
        assert "ffn_mult" not in choice, "it would win, whatever it is"
        return int(choice["intermediate_size"])

    def attention_biases(self) -> tuple[bool, bool]:
        return self.config["qkv_bias"], self.config["attention_bias"]

    def attention(self, prefix: str, choice: dict[str, Any], normed_BSD: Tensor) -> Tensor:
        assert not choice["replace_with_linear"]
        return super().attention(prefix, choice, normed_BSD)


class TensorrtLlmReader(Reader):
    linear_names = ("linear_attn", "linear_mlp")

    def attention_biases(self) -> tuple[bool, bool]:
        return False, False

    def ffn_bias(self) -> bool:
        return False

    def logits(self, ids_BS: Tensor) -> Tensor:
        for block in self.config["block_configs"]:  # read of every block, whatever it is
            assert {"no_op", "replace_with_linear", "n_heads_in_group"} <= set(block["attention"])
            assert {"no_op", "replace_with_linear", "ffn_mult"} <= set(block["ffn"])
        return super().logits(ids_BS)


class SglangReader(Reader):
    def ffn_bias(self) -> bool:
        return False

    def logits(self, ids_BS: Tensor) -> Tensor:
        blocks = [block["attention"] for block in self.config["block_configs"]]
        assert len({block["n_heads_in_group"] for block in blocks if not block["no_op"]}) == 1
        assert "qkv_bias" not in self.config, "it would say the output projection's too"
        return super().logits(ids_BS)


class MlxReader(Reader):
    linear_names = ("linear", "linear")

    def head_dim(self) -> int:
        return int(self.config["hidden_size"] // self.config["num_attention_heads"])

    def width(self, choice: dict[str, Any]) -> int:
        return ffn_mult_to_intermediate_size(round(choice["ffn_mult"], 6), self.config["hidden_size"])

    def logits(self, ids_BS: Tensor) -> Tensor:
        for block in self.config["block_configs"]:  # dataclasses: another key is a TypeError
            attention = {"window_length", "num_sink_tokens", "n_heads_in_group", "sparsify"}
            assert set(block["attention"]) <= {"no_op", "replace_with_linear"} | attention
            assert set(block["ffn"]) <= {"no_op", "replace_with_linear", "sparsify", "ffn_mult"}
        return super().logits(ids_BS)


READERS = {"vllm": VllmReader, "tensorrt-llm": TensorrtLlmReader, "sglang": SglangReader, "mlx": MlxReader}


def ffn_mult_to_intermediate_size(ffn_mult: float, hidden_size: int) -> int:
    """As these programs document it: two thirds of a factor of the width, up to the next multiple of 256."""
    size = int(2 * ffn_mult * hidden_size / 3)
    return size if size % 256 == 0 else size + 256 - size % 256


def make_child(parent: Parent, architecture: Blocks) -> InlayForCausalLM:
    """The parent's tensors where they fit, numbers at random where the child has others."""
    config = parent.config.with_blocks(entries_of(parent.shape, architecture))
    model = InlayForCausalLM(config).eval()
    held = load_file(parent.folder / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in held and held[name].shape == parameter.shape:
                parameter.copy_(held[name])
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
    return model


def put_model(place: Workspace, model: InlayForCausalLM, architecture: Blocks) -> TrainedModel:
    path = place.store.temporary_path()
    save_file({name: tensor.float() for name, tensor in own_state(model).items()}, path)
    return TrainedModel(architecture, place.store.take_blob(path))


def evaluation_of(architecture: Blocks) -> dict[str, Any]:
    rows = {name: {**FIGURES, "architecture": architecture} for name in ("parent", "child")}
    return {**rows, "chosen": "child"}


@pytest.mark.parametrize(("consumer", "family", "changes", "architecture"), CASES)
def test_a_reader_of_the_folder_gives_the_logits_of_the_child(
    consumer: str,
    family: str,
    changes: dict[str, Any],
    architecture: Blocks,
    tiny_parent: Callable[..., Path],
    small_job_of: Callable[[Path], Job],
    tmp_path: Path,
) -> None:
    layers, width = len(architecture), {"intermediate_size": 512}
    parent = open_parent(tiny_parent(family, num_hidden_layers=layers, **width, **changes))
    child, place = make_child(parent, architecture), Workspace(tmp_path / "search")
    folder = write_deci_folder(
        place,
        parent,
        put_model(place, child, architecture),
        tmp_path / "child",
        evaluation_of(architecture),
        small_job_of(parent.folder),
        consumer,
        most_shard_bytes=100_000,
    )
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    with torch.no_grad():
        expected = child(IDS).logits
        given = READERS[consumer](folder).logits(IDS)
    assert (given - expected).abs().max() < 1e-4
    assert expected.std() > 0.1

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("a b").input_ids == parent.tokenizer()("a b").input_ids
    assert CONSUMERS[consumer].serve[0] in (folder / "README.md").read_text()


def test_blocks_have_attributes_where_transformers_reads_them(
    tiny_parent: Callable[..., Path], small_job_of: Callable[[Path], Job], tmp_path: Path
) -> None:
    """It has no such model of its own, so the folder brings the class; MLX reads the file itself."""
    parent = open_parent(tiny_parent("llama", num_hidden_layers=5, intermediate_size=512))
    place, job = Workspace(tmp_path / "search"), small_job_of(parent.folder)
    model = put_model(place, make_child(parent, SAME), SAME)
    for consumer in CONSUMERS:
        folder = write_deci_folder(place, parent, model, tmp_path / consumer, evaluation_of(SAME), job, consumer)
        has_class = consumer != "mlx"
        assert (folder / "configuration_deci.py").is_file() is has_class
        assert ("auto_map" in json.loads((folder / "config.json").read_text())) is has_class
        if not has_class:
            continue
        config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        given = [block.attention.no_op for block in config.block_configs]
        assert given == [attention == "attention:no_op" for attention, _ in SAME]
        assert hasattr(config.block_configs[0].ffn, "ffn_mult") is (consumer != "vllm")
        assert config.rope_parameters["rope_theta"] == config.rope_theta == parent.config.rope_parameters["rope_theta"]
        assert config.dtype is torch.float32
        again = type(config).from_dict(json.loads(config.to_json_string()))
        assert again.block_configs == config.block_configs == copy.deepcopy(config).block_configs


def test_a_scaled_rotation_is_written_as_its_readers_know_it(
    tiny_parent: Callable[..., Path], small_job_of: Callable[[Path], Job], tmp_path: Path
) -> None:
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }  # fmt: skip
    rope = {"rope_parameters": {**scaling, "rope_theta": 500000.0}}
    parent = open_parent(tiny_parent("llama", num_hidden_layers=1, intermediate_size=256, **rope))
    place, architecture = Workspace(tmp_path / "search"), (PARENT_BLOCK,)
    model = put_model(place, make_child(parent, architecture), architecture)
    job = small_job_of(parent.folder)
    folder = write_deci_folder(place, parent, model, tmp_path / "o", evaluation_of(architecture), job, "vllm")
    config = json.loads((folder / "config.json").read_text())
    assert (config["rope_theta"], config["rope_scaling"]) == (500000.0, scaling)
    assert AutoConfig.from_pretrained(folder, trust_remote_code=True).rope_parameters == rope["rope_parameters"]
    assert [path.name for path in folder.glob("*.safetensors*")] == ["model.safetensors"]


LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 1e4,
    "original_max_position_embeddings": 32,
}  # fmt: skip
REFUSED = [
    ("vllm", "llama", {}, (("attention:window=8", "ffn:linear"), ("attention:linear", "ffn:parent")), [
        "layer 0 attention: window (kv_heads=2, window=8, sinks=4): vLLM has no such attention in DeciLM models; "
        "export with --format hf, or take it out of space.attention",
        "layer 0 ffn: linear: vLLM has no such ffn in DeciLM models; export --for tensorrt-llm or mlx, "
        "or take it out of space.ffn",
        "layer 1 attention: linear: vLLM has no such attention in DeciLM models; export --for tensorrt-llm or mlx, "
        "or take it out of space.attention",
    ]),
    ("tensorrt-llm", "llama", {}, (("attention:heads=2", "ffn:parent"), PARENT_BLOCK), [
        "layer 0 attention: full (kv_heads=1, heads=2): DeciLM models have one count of query heads, here 4, and it "
        "has 2; export with --format hf, or take it out of space.attention",
    ]),
    ("vllm", "llama", {}, (("attention:no_op", "ffn:no_op"), ("attention:no_op", "ffn:parent"), PARENT_BLOCK), [
        "layer 1 ffn: gated (width=512): it comes before any attention, where it crashes; "
        "export for another consumer, or with --format hf",
    ]),
    ("sglang", "llama", {}, (("attention:kv_heads=1", "ffn:width=300"), PARENT_BLOCK), [
        "layer 0 ffn: gated (width=300): its ffn_mult would give 512, since it gives multiples of 256 only, which "
        "`space.multiple: 256` searches; export --for vllm, or take it out of space.ffn",
        "layer 1 attention: 2 KV heads, where layer 0 has 1; all layers must have one count; "
        "export for another consumer, or with --format hf",
    ]),
    ("sglang", "qwen2", {}, (PARENT_BLOCK,), [
        "every attention: three of its projections have biases and one has none; here all have or none; "
        "export for another consumer, or with --format hf",
    ]),
    ("sglang", "llama", {}, (("attention:no_op", "ffn:no_op"),), [
        "the model: no layer has attention that keeps keys, and the cache is planned by one; "
        "export for another consumer, or with --format hf",
    ]),
    ("tensorrt-llm", "qwen2", {}, (PARENT_BLOCK,), [
        "every attention: its projections have biases, which would be left out; "
        "export for another consumer, or with --format hf",
    ]),
    ("tensorrt-llm", "llama", {"mlp_bias": True}, (PARENT_BLOCK,), [
        "every ffn: its projections have biases, which would be left out; "
        "export for another consumer, or with --format hf",
    ]),
    ("mlx", "qwen3", {}, (PARENT_BLOCK,), [
        "every attention: qwen3 norms queries and keys, which DeciLM models do not; "
        "export for another consumer, or with --format hf",
        "every attention: 4 heads of 12 are not the model's width, 32; a head's width is taken as their quotient; "
        "export for another consumer, or with --format hf",
    ]),
    ("mlx", "llama", {"attention_bias": True}, (PARENT_BLOCK, ("attention:linear", "ffn:parent")), [
        "layer 1 attention: linear: it would look for a bias, since the parent's projections have one; "
        "export --for tensorrt-llm, or take it out of space.attention",
    ]),
    ("vllm", "llama", {"hidden_act": "gelu"}, (PARENT_BLOCK,), [
        "every ffn: its activation is gelu; known here: silu; export for another consumer, or with --format hf",
    ]),
    ("mlx", "llama", {"rope_parameters": LONGROPE}, (PARENT_BLOCK,), [
        "every attention: its rotary embedding is of type longrope; known here: default, linear, dynamic, llama3, "
        "yarn; export for another consumer, or with --format hf",
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("consumer", "family", "changes", "architecture", "said"), REFUSED)
def test_everything_that_a_consumer_cannot_run_is_told_at_once(
    consumer: str,
    family: str,
    changes: dict[str, Any],
    architecture: Blocks,
    said: list[str],
    tiny_parent: Callable[..., Path],
) -> None:
    layers = len(architecture)
    parent = open_parent(tiny_parent(family, num_hidden_layers=layers, intermediate_size=512, **changes))
    with pytest.raises(UserError) as refused:
        check_deci(parent, architecture, consumer)
    title = CONSUMERS[consumer].title
    if len(said) == 1:
        assert str(refused.value) == f"--for {consumer}: {title} cannot run this child: {said[0]}"
    else:
        headline, *lines = str(refused.value).split("\n  ")
        assert headline == f"--for {consumer}: {title} cannot run this child, for {len(said)} reasons:"
        assert lines == said


@pytest.mark.parametrize("hidden", [32, 288, 576, 960, 2048, 3584, 4096, 5120, 8192, 16384])
def test_ffn_mult_gives_back_every_width_that_it_can(hidden: int) -> None:
    for width in range(256, 8 * hidden + 257, 256):
        ffn_mult = ffn_mult_of(width, hidden)
        assert ffn_mult_to_intermediate_size(ffn_mult, hidden) == width
        assert ffn_mult_to_intermediate_size(round(ffn_mult, 6), hidden) == width
        with pytest.raises(UnfitError, match=f"its ffn_mult would give {width + 256}, "):
            ffn_mult_of(width + 8, hidden)


def test_tensors_are_copied_bit_for_bit_in_shards_of_at_most_so_many_bytes(tmp_path: Path) -> None:
    state = {
        f"{name}.{dtype}".replace("torch.", ""): torch.randn(shape).to(dtype)
        for name, shape in (("matrix", (7, 9)), ("vector", (5,)), ("scalar", ()))
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    }
    store = Store(tmp_path / "store")
    source = ModelFiles(store, store.put_blob(save(state)))
    for most, files in ((10_000, 1), (300, 2)):
        folder = tmp_path / str(most)
        folder.mkdir()
        copy_tensors(source, folder, lambda name: f"a.{name}", most)
        held: dict[str, Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                assert file.metadata() == {"format": "pt"}
            part = load_file(path)
            assert sum(tensor.nbytes for tensor in part.values()) <= most
            held |= part
        assert len(list(folder.glob("*.safetensors"))) == files
        assert held.keys() == {f"a.{name}" for name in state}
        assert all(torch.equal(held[f"a.{name}"], tensor) for name, tensor in state.items())
        assert all(held[f"a.{name}"].dtype is tensor.dtype for name, tensor in state.items())
        if files > 1:
            index = json.loads((folder / "model.safetensors.index.json").read_text())
            assert index["weight_map"].keys() == held.keys()
            assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in state.values())


@pytest.fixture
def finished(tiny_parent: Callable[..., Path], small_job_of: Callable[[Path], Job], tmp_path: Path) -> Path:
    """A workspace of which a search has finished, as far as exports look: its child is MIXED."""
    parent = open_parent(tiny_parent("llama", num_hidden_layers=5, intermediate_size=512))
    place = Workspace(tmp_path / "search")
    model = put_model(place, make_child(parent, MIXED), MIXED)
    place.write_json("workspace.json", {})
    run = {"job": small_job_of(parent.folder).to_dict(), "folder": str(tmp_path)}
    place.write_json(
        "run.json", {**run, "evaluation": evaluation_of(MIXED), "models": {"child": {"blob": model.blob, "packed": ""}}}
    )
    return tmp_path / "search"


def test_the_command(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert main(["export", str(finished), "--format", "deci", "--for", "mlx", "-o", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}\n"
    assert {path.name for path in output.iterdir()} == {
        "README.md", "config.json", "generation_config.json", "inlay_recipe.json",
        "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--format", "deci"],
         "inlay: --format deci needs --for with one of vllm, tensorrt-llm, sglang, mlx, since each program reads a "
         "DeciLM folder of its own"),
        (["--for", "mlx"],
         "inlay: --for mlx: --format hf does not take it; leave it out, or add --format deci"),
        (["--format", "deci", "--for", "sglang"],
         "inlay: --for sglang: SGLang cannot run this child: layer 1 attention: 1 KV heads, where layer 0 has 2; "
         "all layers must have one count; export for another consumer, or with --format hf"),
    ],
)  # fmt: skip
def test_a_refused_export_leaves_nothing(
    options: list[str], said: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.iterdir())
    assert main(["export", str(finished), "-o", str(tmp_path / "out"), *options]) == 2
    assert capsys.readouterr().err == said + "\n"
    assert sorted(tmp_path.iterdir()) == before


def test_the_command_line_knows_what_can_be_written() -> None:
    assert [one.value for one in export_cli.Format] == list(FORMATS)
    assert [one.value for one in export_cli.Consumer] == list(FORMATS["deci"].options["for"]) == list(CONSUMERS)
