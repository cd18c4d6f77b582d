"""What a damaged or foreign parent folder gets: one sentence with the field, the value and the way out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from inlay.nas.errors import UserError
from inlay.nas.families import open_parent
from inlay.nas.families.checkpoint import INDEX, SINGLE
from inlay.nas.families.shape import EMBEDDING, HEAD

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tiny_parent: Any, tmp_path: Path) -> Path:
    """A tied Llama in one file, to be damaged."""
    shutil.copytree(tiny_parent("llama"), tmp_path / "parent")
    return tmp_path / "parent"


@pytest.fixture
def shards(tiny_parent: Any, tmp_path: Path) -> Path:
    """The same in many files."""
    shutil.copytree(tiny_parent("llama", max_shard_size="20KB"), tmp_path / "shards")
    return tmp_path / "shards"


def refusal(folder: Path | str, act: Callable[[Any], object] = lambda parent: parent) -> str:
    with pytest.raises(UserError) as caught:
        act(open_parent(folder))
    text = str(caught.value)
    assert text.startswith("parent: ")
    assert text.endswith((".", ")"))
    assert "\n" not in text
    return text


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(folder / SINGLE)
    edit(state)
    save_file(state, folder / SINGLE)


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_no_such_folder(tmp_path: Path) -> None:
    assert f"there is no folder `{tmp_path / 'absent'}`" in refusal(tmp_path / "absent")


def test_a_file_is_not_a_folder(folder: Path) -> None:
    assert "is a file; give a GGUF file, or the folder" in refusal(folder / SINGLE)


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(folder)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[1]"])
def test_a_config_that_is_not_json(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert "config.json` " in refusal(folder)


def test_another_family(folder: Path) -> None:
    change_json(folder / "config.json", model_type="gemma2")
    families = "llama, mistral, qwen2, qwen3, mixtral, qwen3_moe"
    assert f"model type `gemma2` is not supported; the supported families are {families}, and " in refusal(folder)


def test_no_weights(folder: Path) -> None:
    (folder / SINGLE).unlink()
    assert f"has no weights (neither `{SINGLE}` nor `{INDEX}`)" in refusal(folder)


def test_pickled_weights(folder: Path) -> None:
    torch.save(load_file(folder / SINGLE), folder / "pytorch_model.bin")
    (folder / SINGLE).unlink()
    assert "are pickled (`pytorch_model.bin`)" in (text := refusal(folder))
    assert "convert them to safetensors" in text


@pytest.mark.parametrize("kept", [0, 7, 8, 100, -1, -1000])
def test_a_truncated_file(folder: Path, kept: int) -> None:
    content = (folder / SINGLE).read_bytes()[:kept]
    (folder / SINGLE).write_bytes(content)
    text = refusal(folder)
    assert f"`{folder / SINGLE}` is damaged" in text
    assert f"{len(content):,} bytes" in text


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"[]",
        b'{"a":1}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[4,0]}}',
    ],
)
def test_a_header_that_is_none(folder: Path, header: bytes) -> None:
    (folder / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    assert "its header is not that of a safetensors file" in refusal(folder)


def test_a_truncated_shard(shards: Path) -> None:
    shard = sorted(shards.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-8])
    assert f"`{shard}` is damaged: it is truncated" in refusal(shards)


def test_a_missing_shard(shards: Path) -> None:
    shard = sorted(shards.glob("*.safetensors"))[1]
    shard.unlink()
    assert f"lacks the shard `{shard.name}`" in refusal(shards)


def test_an_index_that_disagrees_with_its_shards(shards: Path) -> None:
    weight_map = json.loads((shards / INDEX).read_text())["weight_map"]
    change_json(shards / INDEX, weight_map={**weight_map, UP: weight_map[EMBEDDING]})
    assert f"the tensor `{UP}` that `{INDEX}` puts there is not in it" in refusal(shards)


@pytest.mark.parametrize("content", ["{", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "../a.safetensors"}}'])
def test_an_index_that_is_none(shards: Path, content: str) -> None:
    (shards / INDEX).write_text(content)
    assert f"{INDEX}` is damaged" in refusal(shards)


@pytest.mark.parametrize("name", [UP, EMBEDDING, "model.norm.weight", "model.layers.0.input_layernorm.weight"])
def test_a_missing_tensor(folder: Path, name: str) -> None:
    change(folder, lambda state: state.pop(name))
    assert f"lack the tensor `{name}`" in refusal(folder)


def test_an_untied_model_without_a_head(folder: Path) -> None:
    change_json(folder / "config.json", tie_word_embeddings=False)
    assert f"lack the tensor `{HEAD}`" in refusal(folder)


def test_a_tensor_of_another_shape(folder: Path) -> None:
    change(folder, lambda state: state.update({UP: torch.zeros(47, 32)}))
    text = refusal(folder)
    assert f"`{UP}`" in text
    assert "has the shape [47, 32] where config.json asks for [48, 32]" in text


def test_a_tensor_that_the_family_does_not_have(folder: Path) -> None:
    name = "model.layers.1.self_attn.q_proj.bias"
    change(folder, lambda state: state.update({name: torch.zeros(32)}))
    assert f"hold the tensor `{name}`, which a llama of this config.json does not have" in refusal(folder)


def test_numbers_of_another_type(folder: Path) -> None:
    change(folder, lambda state: state.update({UP: state[UP].to(torch.float8_e4m3fn)}))
    assert f"the tensor `{UP}`" in (text := refusal(folder))
    assert "is stored as F8_E4M3" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("name", "place"), [(UP, "in layer 1"), (EMBEDDING, "outside the layers")])
def test_a_number_that_is_not_finite(folder: Path, name: str, place: str, value: float) -> None:
    change(folder, lambda state: state[name][3].__setitem__(5, value))
    text = refusal(folder, lambda parent: parent.check_finite())
    assert f"the tensor `{name}` {place} has 1 of " in text
    assert "NaN or infinite in float32" in text


def test_a_number_that_is_not_finite_in_the_dtype_it_is_loaded_in(folder: Path) -> None:
    change(folder, lambda state: state[UP][3].__setitem__(5, 1e6))
    change_json(folder / "config.json", dtype="float16")
    assert "NaN or infinite in float16" in refusal(folder, lambda parent: parent.check_finite())


def test_a_tied_head_that_differs(folder: Path) -> None:
    change(folder, lambda state: state.update({HEAD: state[EMBEDDING] + 1}))
    assert "set `tie_word_embeddings` to false" in refusal(folder, lambda parent: parent.ends_state())


def test_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer (none of tokenizer.json, tokenizer.model, vocab.json)" in refusal(folder)


@pytest.mark.parametrize("content", ["{", "{}", '{"model": {"vocab": 5}}'])
def test_a_tokenizer_that_is_none(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    assert "is not a tokenizer of the tokenizers library" in refusal(folder)


def test_a_tokenizer_without_tokens(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    assert "has no tokens" in refusal(folder)


def test_a_tokenizer_of_a_larger_vocabulary(tiny_parent: Any) -> None:
    # 259 tokens and 200 rows.
    text = refusal(tiny_parent("llama", vocab_size=200))
    assert "does not match the model: its token `" in text
    assert "has the id 258, and the embedding has 200 rows" in text


def test_an_added_token_beyond_the_embedding(folder: Path) -> None:
    path = folder / "tokenizer.json"
    added = [*json.loads(path.read_text())["added_tokens"], {"id": 288, "content": "<beyond>"}]
    change_json(path, added_tokens=added)
    assert "its token `<beyond>` has the id 288, and the embedding has 288 rows" in refusal(folder)


def test_a_list_of_tokens_is_counted_too(folder: Path) -> None:
    tokens = [[f"t{place}", 0.0] for place in range(289)]
    change_json(folder / "tokenizer.json", model={"type": "Unigram", "vocab": tokens})
    assert "its token `t288` has the id 288" in refusal(folder)


def test_a_tokenizer_that_cannot_be_loaded(folder: Path) -> None:
    change_json(folder / "tokenizer.json", model={"type": "none", "vocab": {"a": 0}})
    assert "cannot be loaded" in refusal(folder, lambda parent: parent.tokenizer())


def test_a_config_that_transformers_refuses(folder: Path) -> None:
    change_json(folder / "config.json", rms_norm_eps="small")
    assert "Transformers refuses" in refusal(folder, lambda parent: parent.config)
