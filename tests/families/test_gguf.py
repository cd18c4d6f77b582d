"""Parents in GGUF files: the same model comes out, and what cannot be opened is refused in one sentence."""

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from gguf_files import name_in_file, write_gguf
from hard_texts import texts
from safetensors.torch import load_file
from sentencepieces import like_sentencepiece
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from inlay.nas.errors import UserError
from inlay.nas.families import GgufFile, described, open_parent, open_source, unpacked
from inlay.nas.families.gguf import open_gguf

IDS = torch.arange(3, 51)[None]


def logits(folder: Path) -> torch.Tensor:
    """Of the model in a folder, in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        output: torch.Tensor = model(IDS).logits
    return output


def unpack(path: Path, place: Path) -> Path:
    """The folder that a file becomes."""
    source = open_source(path)
    assert isinstance(source, GgufFile)
    with unpacked(source, place) as parent:
        parent.check_finite()
        return parent.folder


FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True, "head_dim": 12}),
    ("mistral", {}),
    ("mistral", {"sliding_window": None, "head_dim": 16}),
    ("qwen2", {}),
    ("qwen3", {}),
]


@pytest.mark.parametrize(("family", "config"), FAMILIES)
def test_a_file_opens_as_the_same_model(family: str, config: dict[str, Any], tiny_parent: Any, tmp_path: Path) -> None:
    original = tiny_parent(family, **config)
    folder = unpack(write_gguf(original, tmp_path / "m.gguf"), tmp_path / "place")
    assert logits(folder).equal(logits(original))
    mine, theirs = open_parent(folder), open_parent(original)
    assert mine.shape.blocks == theirs.shape.blocks
    assert mine.shape.dtype == "float32"
    # A Mistral without a window computes what a Llama does, and files call both llama.
    assert mine.shape.family == ("llama" if config.get("sliding_window", 1) is None else family)
    assert (mine.config.bos_token_id, mine.config.eos_token_id) == (1, 2)
    text = "A text,  of 2 lines\nand <s> special</s> tokens: é 🙂"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer(text).input_ids == AutoTokenizer.from_pretrained(original)(text).input_ids
    assert tokenizer.decode(tokenizer(text).input_ids) == "<s>" + text


@pytest.mark.parametrize(
    ("kind", "dtype"), [("F16", "float16"), ("BF16", "bfloat16"), ("Q8_0", "bfloat16"), ("Q4_0", "bfloat16")]
)
def test_stored_numbers_are_the_files(kind: str, dtype: str, tiny_parent: Any, tmp_path: Path) -> None:
    original = tiny_parent("llama", intermediate_size=64)
    folder = unpack(write_gguf(original, tmp_path / "m.gguf", kind), tmp_path / "place")
    stored = load_file(folder / "model.safetensors")
    for name, tensor in load_file(original / "model.safetensors").items():
        numbers = tensor.numpy()
        if tensor.ndim > 1:
            numbers = dequantize(quantize(numbers, GGMLQuantizationType[kind]), GGMLQuantizationType[kind])
        assert stored[name].equal(torch.from_numpy(np.array(numbers)).to(getattr(torch, dtype))), name
    assert open_parent(folder).shape.dtype == dtype
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype


@pytest.mark.parametrize(
    "rotation",
    [
        {"rope_type": "linear", "factor": 2.5},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ],
)
def test_scaled_rotations_come_along(rotation: dict[str, Any], tiny_parent: Any, tmp_path: Path) -> None:
    parameters = rotation | {"rope_theta": 500000.0}
    original = tiny_parent("llama", head_dim=32, rope_parameters=parameters)

    def edit(writer: GGUFWriter, tensors: dict[str, Any]) -> None:
        if rotation["rope_type"] == "llama3":
            config = AutoConfig.from_pretrained(original)
            scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
            plain = 500000.0 ** -(torch.arange(0, 32, 2) / 32)
            tensors["rope_freqs.weight"] = (plain / scaled).round(decimals=4).numpy()
            return
        writer.add_string("llama.rope.scaling.type", rotation["rope_type"])
        writer.add_rope_scaling_factor(rotation["factor"])
        if "original_max_position_embeddings" in rotation:
            writer.add_rope_scaling_orig_ctx_len(rotation["original_max_position_embeddings"])

    folder = unpack(write_gguf(original, tmp_path / "m.gguf", edit=edit), tmp_path / "place")
    assert json.loads((folder / "config.json").read_text())["rope_parameters"] == parameters
    assert logits(folder).equal(logits(original))


def test_it_is_unpacked_once(tiny_parent: Any, tmp_path: Path) -> None:
    path, place = write_gguf(tiny_parent("llama"), tmp_path / "m.gguf"), tmp_path / "place"
    folder = unpack(path, place)
    held = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    digest = open_parent(folder).digest
    assert unpack(path, place) == folder
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == held
    assert [each.name for each in place.iterdir()] == [folder.name]
    # Another file is another parent, and the same file made again the same one.
    assert unpack(write_gguf(tiny_parent("llama", seed=1), tmp_path / "other.gguf"), place) != folder
    assert open_parent(unpack(path, tmp_path / "again")).digest == digest


def test_it_goes_again_where_nothing_may_be_written(tiny_parent: Any, tmp_path: Path) -> None:
    path, place = write_gguf(tiny_parent("llama"), tmp_path / "m.gguf"), tmp_path / "place"
    for was_there in (False, True):
        if was_there:
            unpack(path, place)
        with pytest.raises(UserError, match="no"), unpacked(open_source(path), place):
            raise UserError("no")
        assert bool(list(place.iterdir())) is was_there


def test_a_look_leaves_nothing(tiny_parent: Any, tmp_path: Path) -> None:
    original = tiny_parent("qwen3")
    with described(open_source(write_gguf(original, tmp_path / "m.gguf"))) as parent:
        theirs = open_parent(original)
        for name, tensor in theirs.layer_state(1).items():
            assert parent.layer_state(1)[name].equal(tensor)
        assert parent.config.to_dict().keys() == theirs.config.to_dict().keys()
        assert parent.tokenizer()("a").input_ids == theirs.tokenizer()("a").input_ids
        folder = parent.folder
    assert not folder.exists()


def test_what_a_chat_needs_comes_along(tiny_parent: Any, tmp_path: Path) -> None:
    def edit(writer: GGUFWriter, tensors: dict[str, Any]) -> None:
        writer.add_chat_template("{{ messages[0].content }}")
        writer.add_eot_token_id(5)
        writer.add_pad_token_id(0)

    folder = unpack(write_gguf(tiny_parent("llama"), tmp_path / "m.gguf", edit=edit), tmp_path / "place")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi"
    assert (tokenizer.pad_token_id, tokenizer.model_max_length) == (0, 64)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [2, 5], "pad_token_id": 0}


def check_same_ids(original: Path, folder: Path) -> None:
    """Of every text, and back."""
    mine, theirs = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(original)
    for text in texts():
        ids = theirs(text).input_ids
        assert mine(text).input_ids == ids, repr(text)
        assert mine.decode(ids) == theirs.decode(ids), repr(text)


def test_tokenizers_come_back(parents_dir: Path, tmp_path: Path) -> None:
    for original in sorted(path.parent for path in parents_dir.glob("*/config.json")):
        path = write_gguf(original, tmp_path / f"{original.name}.gguf", "F16")
        check_same_ids(original, unpack(path, tmp_path / "place"))


@pytest.mark.parametrize("prefix", [True, False])
def test_a_tokenizer_that_falls_back_to_bytes_comes_back(prefix: bool, tiny_parent: Any, tmp_path: Path) -> None:
    described = like_sentencepiece()
    if not prefix:
        described["normalizer"] = described["normalizer"]["normalizers"][1]
        described["decoder"]["decoders"].pop()
    original = tmp_path / "original"
    shutil.copytree(tiny_parent("mistral", vocab_size=1000), original)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(original)
    check_same_ids(original, unpack(write_gguf(original, tmp_path / "m.gguf"), tmp_path / "place"))


def test_opening_needs_no_torch(tiny_parent: Any, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom inlay.nas.families import open_source\nassert open_source(sys.argv[1]).shape.hidden == 32\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    command = [sys.executable, "-c", script, str(write_gguf(tiny_parent("llama"), tmp_path / "m.gguf"))]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


# What is refused.


def refusal(act: Callable[[], object]) -> str:
    """What is said, in one sentence."""
    with pytest.raises(UserError) as caught:
        act()
    text = str(caught.value)
    assert text.startswith("parent: ")
    assert "\n" not in text
    assert text.endswith(".")
    return text


def test_files_that_are_not_there_or_no_gguf(tiny_parent: Any, tmp_path: Path) -> None:
    absent = tmp_path / "absent.gguf"
    assert f"there is no file `{absent}`" in refusal(lambda: open_source(absent))
    (tmp_path / "a.gguf").write_bytes(b"GGML" + bytes(100))
    assert "is damaged: it does not begin as GGUF files do" in refusal(lambda: open_source(tmp_path / "a.gguf"))
    (tmp_path / "b.gguf").write_bytes(b"GGUF" + struct.pack("<I", 1) + bytes(100))
    assert "is of version 1 of GGUF, which is not read" in refusal(lambda: open_source(tmp_path / "b.gguf"))


def test_every_truncation_is_seen(tiny_parent: Any, tmp_path: Path) -> None:
    whole = write_gguf(tiny_parent("llama"), tmp_path / "m.gguf").read_bytes()
    path = tmp_path / "t.gguf"
    for size in [*range(0, 400, 7), *range(400, len(whole), 4999), len(whole) - 1]:
        path.write_bytes(whole[:size])
        assert "is truncated" in refusal(lambda: open_source(path)), size


def test_damaged_headers_are_told_whatever_stands_there(tiny_parent: Any, tmp_path: Path) -> None:
    whole = write_gguf(tiny_parent("llama"), tmp_path / "m.gguf").read_bytes()
    path, draw = tmp_path / "d.gguf", np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        at = int(draw.integers(4, 12_000))
        damaged[at : at + 4] = draw.bytes(4)
        path.write_bytes(damaged)
        with suppress(UserError):
            open_gguf(path)


def changed(tiny_parent: Any, tmp_path: Path, edit: Callable[[GGUFWriter, dict[str, Any]], object], **how: Any) -> str:
    """What is said of a file that was changed so."""
    path = write_gguf(tiny_parent(how.pop("family", "llama")), tmp_path / "m.gguf", edit=edit, **how)
    return refusal(lambda: open_source(path))


TENSOR = "blk.1.ffn_up.weight"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            lambda writer, tensors: tensors.pop(TENSOR),
            f"is damaged: it lacks the tensor `{TENSOR}`, which a llama of 3 layers has",
        ),
        (lambda writer, tensors: tensors.pop("token_embd.weight"), "it lacks the tensor `token_embd.weight`"),
        (
            lambda writer, tensors: tensors.update({TENSOR: np.zeros((40, 32), np.float32)}),
            f"its tensor `{TENSOR}` has the shape [40, 32] where its sizes ask for [48, 32]",
        ),
        (
            lambda writer, tensors: tensors.update({"blk.0.attn_sinks.weight": np.zeros(4, np.float32)}),
            "holds the tensor `blk.0.attn_sinks.weight`, which a llama does not have",
        ),
        (lambda writer, tensors: writer.add_expert_count(8), "is no plain llama: `expert_count` is 8"),
        (
            lambda writer, tensors: writer.add_head_count([4, 4, 2]),
            "is no plain llama: its layers differ in `attention.head_count`",
        ),
        (
            lambda writer, tensors: writer.add_rope_dimension_count(4),
            "is no plain llama: `rope.dimension_count` is 4 where its heads are 8 wide",
        ),
        (
            lambda writer, tensors: writer.add_string("llama.rope.scaling.type", "longrope"),
            "is no plain llama: its rotation is scaled by type longrope",
        ),
        (
            lambda writer, tensors: tensors.update({"rope_freqs.weight": np.array([1, 3, 2, 9], np.float32)}),
            "is no plain llama: its `rope_freqs.weight` is not that of a Llama 3",
        ),
        (lambda writer, tensors: writer.add_block_count(0), "`llama.block_count` is 0, not a number of at least 1"),
        (
            lambda writer, tensors: writer.add_layer_norm_rms_eps(float("nan")),
            "`llama.attention.layer_norm_rms_epsilon` is nan, not a positive number",
        ),
        (lambda writer, tensors: writer.add_uint16("split.count", 3), "is one of 3 parts; join them by"),
        (
            lambda writer, tensors: writer.add_tokenizer_model("t5"),
            "the tokenizer in `{path}` is of the kind `t5`, and cannot be rebuilt; give the model as a",
        ),
        (
            lambda writer, tensors: writer.add_tokenizer_pre("tekken"),
            "cuts texts in the way `tekken` (`tokenizer.ggml.pre`), and cannot be rebuilt",
        ),
        (lambda writer, tensors: writer.add_token_list(["a"] * 288), "no list of tokens in which each stands once"),
        (lambda writer, tensors: writer.add_token_list(["a"] * 289), "it has 289 tokens and an embedding of 288 rows"),
        (lambda writer, tensors: writer.add_token_list([1] * 288), "its `tokenizer.ggml.tokens` is no list of texts"),
        (lambda writer, tensors: writer.add_string("split.count", "2"), "its `split.count` is no int"),
        (
            lambda writer, tensors: writer.add_head_count_kv(3),
            "a model 32 wide with 4 query and 3 key/value heads is none",
        ),
        (lambda writer, tensors: writer.add_token_merges(["a zz"]), "is damaged: its tokenizer cannot be rebuilt ("),
        (lambda writer, tensors: writer.add_token_types([1]), "it has 288 tokens and the types of 1"),
        (
            lambda writer, tensors: writer.add_eos_token_id(500),
            "its `tokenizer.ggml.eos_token_id` is 500, which is none of its tokens",
        ),
        (
            lambda writer, tensors: writer.add_pad_token_id(500),
            "its `tokenizer.ggml.padding_token_id` is 500, which is none of its tokens",
        ),
    ],
)
def test_what_is_no_parent_is_refused(edit: Any, words: str, tiny_parent: Any, tmp_path: Path) -> None:
    assert words.format(path=tmp_path / "m.gguf") in changed(tiny_parent, tmp_path, edit)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", "gemma3")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    text = refusal(lambda: open_source(tmp_path / "m.gguf"))
    assert "holds a model of the architecture `gemma3`; the supported families are llama, mistral, qwen2, qwen3" in text


def test_numbers_that_are_none_leave_nothing(tiny_parent: Any, tmp_path: Path) -> None:
    def edit(writer: GGUFWriter, tensors: dict[str, Any]) -> None:
        tensors[TENSOR] = tensors[TENSOR].copy()
        tensors[TENSOR][3, 4] = np.nan

    path = write_gguf(tiny_parent("llama"), tmp_path / "m.gguf", edit=edit)
    text = refusal(lambda: unpack(path, tmp_path / "place"))
    name = "model.layers.1.mlp.up_proj.weight"
    assert f"the tensor `{name}` in `{path}` has 1 of 1,536 numbers that are NaN or infinite in float32" in text
    assert list((tmp_path / "place").iterdir()) == []


def test_a_format_that_nobody_turns_back_is_refused(tiny_parent: Any, tmp_path: Path) -> None:
    path = write_gguf(tiny_parent("llama", intermediate_size=64), tmp_path / "m.gguf", "Q8_0")
    content = path.read_bytes()
    name = name_in_file("model.layers.1.mlp.up_proj.weight").encode()
    kind_at = content.index(name) + len(name) + 4 + 2 * 8
    for kind, words in (
        (
            GGMLQuantizationType.Q8_1,
            "has tensors in the format Q8_1, which the package gguf does not turn into numbers",
        ),
        (250, f"the tensor `{name.decode()}` in `{path}` is stored in a format that the package gguf does not know"),
    ):
        path.write_bytes(content[:kind_at] + struct.pack("<I", kind) + content[kind_at + 4 :])
        assert words in refusal(lambda: unpack(path, tmp_path / "place"))


def test_too_little_room_is_told(tiny_parent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tiny_parent("llama"), tmp_path / "m.gguf")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=5))
    text = refusal(lambda: unpack(path, tmp_path / "place"))
    assert "has 5 free; set cluster.scratch to a folder with more room" in text
    assert list((tmp_path / "place").iterdir()) == []


def test_a_folder_with_one_file_says_its_name(tiny_parent: Any, tmp_path: Path) -> None:
    path = write_gguf(tiny_parent("llama"), tmp_path / "m.gguf")
    assert refusal(lambda: open_source(tmp_path)) == (
        f"parent: the folder `{tmp_path}` has no config.json, but a GGUF file; name that file: `parent: {path}`."
    )


def test_the_missing_extra_is_named(tiny_parent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tiny_parent("llama"), tmp_path / "m.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert refusal(lambda: open_source(path)) == (
        "parent: GGUF files need the package gguf; install it by `pip install 'inlay[gguf]'`."
    )


@pytest.fixture
def smollm2() -> Path:
    """A real file: SmolLM2-135M-Instruct, docs/gguf.md says where it is."""
    given = os.environ.get("INLAY_SMOLLM2")
    if given is None:
        pytest.skip("INLAY_SMOLLM2 names no GGUF file")
    return Path(given)


@pytest.mark.slow
def test_a_real_model_still_knows_things(smollm2: Path, tmp_path: Path) -> None:
    folder = unpack(smollm2, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert "Paris" in tokenizer.decode(model.generate(ids, max_new_tokens=4, do_sample=False)[0])
    given = texts()
    check = Path(__file__).parents[1] / "engines" / "llama_tokens.py"
    command = [sys.executable, str(check), str(smollm2)]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, check=True)
    for text, (ids, _) in zip(given, json.loads(done.stdout)["answers"], strict=True):
        assert tokenizer(text).input_ids == ids, repr(text)
    assert hashlib.sha256(smollm2.read_bytes()).hexdigest() != folder.name  # the version of what is made of it counts
