"""The shipped model: its shape, its size, that Transformers reads it, and that its card tells the truth."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from inlay.nas.embedded import PARENTS, embedded_parent
from inlay.nas.embedded.card import measure, read_figures, slice_bits_per_byte
from inlay.nas.embedded.folder import write_folder
from inlay.nas.embedded.llama import Llama, Shape
from inlay.nas.embedded.train import Recipe
from inlay.nas.errors import UserError

FOLDER = embedded_parent("pystdlib")


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def test_unknown_parent() -> None:
    with pytest.raises(UserError, match=r"^There is no embedded parent `tiny`: the embedded parents are `pystdlib`\.$"):
        embedded_parent("tiny")


def test_every_parent_is_a_whole_folder() -> None:
    files = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    for name in PARENTS:
        assert {path.name for path in embedded_parent(name).iterdir()} == files | {"README.md"}


def test_shape_and_size(model: Any) -> None:
    assert isinstance(model, LlamaForCausalLM)
    config = model.config
    assert config.num_hidden_layers >= 8
    assert 1 < config.num_key_value_heads < config.num_attention_heads
    assert 2_000_000 <= sum(parameter.numel() for parameter in model.parameters()) <= 4_000_000
    assert 2048 <= config.vocab_size <= 4096
    assert (FOLDER / "model.safetensors").stat().st_size <= 8_000_000


def test_weights_are_finite_bfloat16_and_tied_once() -> None:
    with safe_open(FOLDER / "model.safetensors", framework="pt") as stored:
        assert "lm_head.weight" not in stored.keys()  # noqa: SIM118 (not a mapping)
        for name in stored.keys():  # noqa: SIM118
            tensor = stored.get_tensor(name)
            assert tensor.dtype == torch.bfloat16
            assert tensor.isfinite().all()


def test_transformers_computes_what_the_training_script_computes(model: Any) -> None:
    ours = Llama(Shape(), seed=0)
    ours.load_state_dict(load_file(FOLDER / "model.safetensors"))
    tokens_BS = torch.randint(0, 3072, (2, 512), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(ours(tokens_BS), model(tokens_BS).logits, atol=1e-4, rtol=0)


def test_written_folder_is_the_shipped_one(tmp_path: Path) -> None:
    ours = Llama(Shape(), seed=0)
    ours.load_state_dict(load_file(FOLDER / "model.safetensors"))
    write_folder(ours, Tokenizer.from_file(str(FOLDER / "tokenizer.json")), tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (FOLDER / path.name).read_bytes(), path.name
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_tokenizer_opens_with_bos_and_is_exact() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    text = "def f(x) :\n\treturn 'don \\'t'  # é 漢字\r\n\n"
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id == 1
    assert tokenizer.eos_token_id == 2
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_it_generates_python(model: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    inputs = tokenizer("import os\nimport ", return_tensors="pt", return_token_type_ids=False)
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert ids.shape[1] > inputs["input_ids"].shape[1]


def test_card_states_a_quarter_below_the_ngram_model() -> None:
    figures = read_figures(FOLDER)
    assert figures["bits_per_byte"] <= 0.75 * figures["ngram_bits_per_byte"]


def test_slice_figure_of_the_card_is_what_the_model_gets(model: Any) -> None:
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    found = slice_bits_per_byte(model, tokenizer, Recipe().length)
    # The text of the modules differs a little between Python versions.
    assert found == pytest.approx(read_figures(FOLDER)["slice_bits_per_byte"], rel=0.05)


@pytest.mark.slow
def test_all_figures_of_the_card() -> None:
    figures = measure(FOLDER, Recipe())
    stated = read_figures(FOLDER)
    assert figures.bits_per_byte == pytest.approx(stated["bits_per_byte"], rel=0.05)
    assert figures.ngram_bits_per_byte == pytest.approx(stated["ngram_bits_per_byte"], rel=0.05)
    assert figures.bits_per_byte <= 0.75 * figures.ngram_bits_per_byte
