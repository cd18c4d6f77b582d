"""Subblocks whose matrices are stored in different formats: how that is written, what it takes, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from inlay.cluster.store import Store
from inlay.nas.engines.llama_cpp import LlamaCppEngine
from inlay.nas.engines.llama_files import packed_of
from inlay.nas.errors import UserError
from inlay.nas.families import open_parent, subblock_tensors
from inlay.nas.formats import FORMATS
from inlay.nas.formats.by_tensor import form_of, forms_in, is_stored_as, stored_as
from inlay.nas.formats.tensors import rounded
from inlay.nas.job import Job
from inlay.nas.job.space import Formats, Space
from inlay.nas.modeling.subblock_inlay import FORMAT
from inlay.nas.pieces.matrix_inputs import MatrixInputs
from inlay.nas.pieces.weights import rounded_state
from inlay.nas.variants import Variant, parse_variant, variants_of
from inlay.nas.variants.mixed import MixedSpace

ENGINE = LlamaCppEngine()


def test_it_is_written_in_one_way() -> None:
    assert stored_as("q4_K", {"v": "q6_K", "o": "q5_K"}) == "q4_K,o=q5_K,v=q6_K"
    assert stored_as("q4_K", {"down": "q4_K"}) == "q4_K"
    assert forms_in("q4_K,o=q5_K,v=q6_K") == ("q4_K", "q5_K", "q6_K")
    assert form_of("q4_K,down=q6_K", "mlp.down_proj.weight") == "q6_K"
    assert form_of("q4_K,down=q6_K", "model.layers.3.mlp.gate_proj.weight") == "q4_K"
    assert form_of("q4_K", "mlp.down_proj.weight") == "q4_K"
    assert is_stored_as("q4_K,down=q6_K", ["down"])
    for text in ("q4_K,down=q4_K", "q4_K,v=q6_K,o=q5_K", "q4_K,up=q6_K", "q4_K,down=q7", "q4_K,down", ",down=q6_K", ""):
        assert not is_stored_as(text, ["down", "o", "v"])


def test_labels_are_read_back() -> None:
    for label in ("ffn:width=1024@q4_K,down=q6_K", "attention:parent@q4_K,o=q5_K,v=q6_K", "ffn:parent@q8_0"):
        assert parse_variant(label).label == label
    variant = parse_variant("ffn:width=64@q4_0,down=q8_0")
    assert variant.bare.label == "ffn:width=64"
    assert not variant.trained
    assert variant.short == "64 q4_0,down=q8_0"
    with pytest.raises(UserError, match=r"'q7' is no format; there are f32"):
        parse_variant("ffn:parent@q4_K,down=q7")


def test_every_matrix_has_its_own_format_in_the_file(tiny_parent: Callable[..., Path]) -> None:
    parent = open_parent(tiny_parent("llama", intermediate_size=160))
    shape = parent.shape
    labels = ["attention:parent@q4_0,o=q5_0,v=q8_0", "ffn:parent@q4_0,down=q5_0"]
    block = {v.slot: v.entry(shape, 0) for v in map(parse_variant, labels)}
    packed = packed_of(parent.config.with_blocks([block, *parent.config.blocks[1:]]), "f16")
    told = {tensor.name: tensor.format for tensor in packed.tensors if tensor.name.startswith("blk.0.")}
    assert {name: form for name, form in told.items() if "norm" not in name} == {
        "blk.0.attn_q.weight": "q4_0",
        "blk.0.attn_k.weight": "q4_0",
        "blk.0.attn_v.weight": "q8_0",
        "blk.0.attn_output.weight": "q5_0",
        "blk.0.ffn_gate.weight": "q4_0",
        "blk.0.ffn_up.weight": "q4_0",
        "blk.0.ffn_down.weight": "q5_0",
    }
    storage = ENGINE.storage("f16", "cpu")
    parts = [storage.weights(block[slot], slot, shape) for slot in ("attention", "ffn")]
    rest = storage.model(shape, [block, *parent.config.blocks[1:]])
    plain = [storage.weights(shape.parent_entry(0, slot), slot, shape) for slot in ("attention", "ffn")]
    assert packed.weights_bytes == rest
    assert storage.model(shape, shape.blocks) - rest == sum(plain) - sum(parts)


def test_each_is_rounded_by_its_own(tiny_parent: Callable[..., Path], tmp_path: Path) -> None:
    parent = open_parent(tiny_parent("llama"))
    state = parent.slot_state(0, "ffn")
    found = rounded_state(state, "q4_0,down=q8_0", MatrixInputs(Store(str(tmp_path)), {}), None)
    for name, tensor in state.items():
        form = None if tensor.ndim < 2 else FORMATS["q8_0" if "down" in name else "q4_0"].holding(tensor.shape[1])
        expected = tensor if form is None else rounded(tensor, form)
        assert torch.equal(found[name], expected)


def test_what_cannot_be_is_refused(tiny_parent: Callable[..., Path]) -> None:
    shape = open_parent(tiny_parent("llama", hidden_size=64, num_attention_heads=4, intermediate_size=256)).shape
    assert Variant("ffn", "parent", form="q4_0,down=q4_K").problem(shape, 0) is None
    assert Variant("ffn", "parent", form="q4_K,down=q8_0").problem(shape, 0) == (
        "ffn:parent@q4_K,down=q8_0 is not possible: q4_K stores 256 numbers together, and its rows have 64; take q5_0"
    )
    assert Variant("attention", "linear", form="q4_0,o=q8_0").problem(shape, 0) == (
        "attention:linear@q4_0,o=q8_0 is not possible: it has no `o` apart; all of it is stored alike"
    )
    normed = open_parent(tiny_parent("qwen3")).shape
    for form, told in (("q4_0,o=q8_0", False), ("q4_0,v=q8_0", True)):
        entry = Variant("attention", "parent", form=form).entry(normed, 0)
        problem = ENGINE.problem(entry, "attention", normed, "f16")
        assert (problem is not None) is told
    assert problem == (
        "llama.cpp stores query, key and value of heads that are normed as one matrix; give all three one format"
    )


def test_a_space_with_mixes_offers_them_beside_the_formats(tiny_parent: Callable[..., Path]) -> None:
    shape = open_parent(tiny_parent("llama", intermediate_size=256)).shape
    space = Space.model_validate({"ffn": [{"width": 128}, "linear"], "formats": {"choices": ["q8_0"], "by": "tensor"}})
    mixed = MixedSpace(space, {(0, "ffn"): ("q8_0,down=q4_0",)})
    plain = {variant.label for variant in variants_of(space, shape, 0)}
    assert {variant.label for variant in variants_of(mixed, shape, 0)} - plain == {
        "ffn:parent@q8_0,down=q4_0",
        "ffn:width=128@q8_0,down=q4_0",
    }
    assert {variant.label for variant in variants_of(mixed, shape, 1)} == {
        v.label for v in variants_of(space, shape, 1)
    }


def test_a_job_says_so_and_is_written_as_it_was_read(tmp_path: Path) -> None:
    space = Space.model_validate({"formats": {"choices": ["q8_0", "q4_K"], "by": "tensor"}})
    assert space.formats == Formats(("q8_0", "q4_K"), "tensor")
    assert space.model_dump(mode="json")["formats"] == {"choices": ["q8_0", "q4_K"], "by": "tensor"}
    assert Space.model_validate(space.model_dump(mode="json")) == space
    plain = Space.model_validate({"formats": {"choices": ["q8_0"]}})
    assert plain.model_dump(mode="json")["formats"] == ["q8_0"]
    assert plain == Space.model_validate({"formats": ["q8_0"]})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"choices": ["q8_0"], "by": "layer"},
            "space.formats.by: 'layer' is neither subblock nor tensor; write one of them",
        ),
        ({"by": "tensor"}, "space.formats.choices: is missing; write for example {choices: [q8_0, q4_K], by: tensor}"),
        (
            {"choices": ["q8_0"], "bye": "tensor"},
            "space.formats.bye: is no key of formats; did you mean `by`? they have choices and by",
        ),
        ({"choices": ["q4_k"]}, "space.formats.choices[0]: 'q4_k' is not a format; did you mean `q4_K`? there are "),
    ],
)
def test_what_is_wrong_with_a_job_is_told(given: object, told: str) -> None:
    with pytest.raises(UserError) as refused:
        Job.from_dict({"space": {"formats": given}})
    assert any(line.strip().startswith(told) for line in str(refused.value).splitlines())


def test_a_given_table_has_no_times_of_it(tmp_path: Path) -> None:
    values = {
        "space": {"formats": {"choices": ["q8_0"], "by": "tensor"}},
        "hardware": {"engine": "llama.cpp", "costs": "costs.csv"},
    }
    with pytest.raises(UserError) as refused:
        Job.from_dict(values)
    assert (
        "hardware.costs: has no times of subblocks whose matrices differ, which are found in the search; leave it out, "
        "or set space.formats.by to subblock"
    ) in str(refused.value)


def test_matrices_are_told_apart_by_their_modules(tiny_parent: Callable[..., Path]) -> None:
    shape = open_parent(tiny_parent("llama")).shape
    names = subblock_tensors(shape, "attention", shape.parent_entry(0, "attention"))
    forms = {name: form_of("q4_0,o=q5_0,v=q8_0", name) for name, size in names.items() if len(size) == 2}
    assert sorted(forms.values()) == ["q4_0", "q4_0", "q5_0", "q8_0"]
    assert FORMAT not in shape.parent_entry(0, "attention")
