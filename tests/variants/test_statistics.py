"""Calibration sums against the same sums written out in float64."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from inlay.nas.families import open_parent
from inlay.nas.modeling import Ends, build_layer, make_context
from inlay.nas.pieces.calibration import statistics_of
from inlay.nas.variants import parse_variant
from inlay.nas.variants.alone import LayerByChannels
from inlay.nas.variants.linear import ridge
from inlay.nas.variants.statistics import ChannelGram, Inputs, Products, Sums, gather

PRODUCTS = {slot: Products(slot) for slot in ("attention", "ffn")}
ALL = (Inputs("attention"), *PRODUCTS.values(), ChannelGram(), LayerByChannels())


def written_out(case) -> dict[str, torch.Tensor]:
    layer, hidden_BSD = case.layer, case.hidden_BSD
    attention_x = layer.input_layernorm(hidden_BSD)
    attention_y = layer.attention_update(hidden_BSD, case.context)
    middle_BSD = hidden_BSD + attention_y
    ffn_x = layer.post_attention_layernorm(middle_BSD)
    channels_BSF = layer.mlp.act_fn(layer.mlp.gate_proj(ffn_x)) * layer.mlp.up_proj(ffn_x)
    ffn_y = layer.mlp.down_proj(channels_BSF)
    before_x = layer.post_attention_layernorm(hidden_BSD)
    before_BSF = layer.mlp.act_fn(layer.mlp.gate_proj(before_x)) * layer.mlp.up_proj(before_x)
    layer_y = layer(hidden_BSD, case.context) - hidden_BSD
    rows = {
        name: t.flatten(0, 1).double()
        for name, t in {
            "ax": attention_x,
            "ay": attention_y,
            "fx": ffn_x,
            "fy": ffn_y,
            "c": channels_BSF,
            "h": before_BSF,
            "y": layer_y,
        }.items()
    }
    return {
        "attention.inputs.xx": rows["ax"].T @ rows["ax"],
        "attention.inputs.x": rows["ax"].sum(dim=0),
        "attention.products.xx": rows["ax"].T @ rows["ax"],
        "attention.products.xy": rows["ax"].T @ rows["ay"],
        "ffn.products.xx": rows["fx"].T @ rows["fx"],
        "ffn.products.xy": rows["fx"].T @ rows["fy"],
        "layer.channels.hh": rows["h"].T @ rows["h"],
        "layer.channels.hy": rows["h"].T @ rows["y"],
        "ffn.gram.hh": rows["c"].T @ rows["c"],
    }


def test_they_are_the_sums_of_the_definition(case) -> None:
    expected = written_out(case)
    sums, _ = gather(case.layer, case.hidden_BSD, case.context, ALL)
    assert sums.tensors.keys() == expected.keys()
    for name, given in sums.tensors.items():
        assert given.dtype == torch.float32
        limit = 1e-5 * float(expected[name].abs().max())
        torch.testing.assert_close(given.double(), expected[name], rtol=1e-5, atol=limit)
    assert sums.tokens == 4 * 32


def test_the_output_is_that_of_the_layer(case) -> None:
    _, out_BSD = gather(case.layer, case.hidden_BSD, case.context, ALL)
    assert out_BSD.equal(case.layer(case.hidden_BSD, case.context))


def test_nothing_is_left_in_the_layer(case) -> None:
    gather(case.layer, case.hidden_BSD, case.context, ALL)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in case.layer.modules())


def test_chunks_add_up(case) -> None:
    parent, entry = case.parent, case.parent.config.blocks[1]["attention"]
    context = make_context(parent.config, 2, 32, getattr(torch, parent.shape.dtype), "cpu", [entry])
    first, second = (gather(case.layer, half, context, ALL)[0] for half in case.hidden_BSD.split(2))
    joined = first + second
    assert joined.tokens == case.sums.tokens
    for name, found in joined.tensors.items():
        limit = 1e-4 * float(case.sums.tensors[name].abs().max())
        torch.testing.assert_close(found, case.sums.tensors[name], rtol=1e-4, atol=limit)


def test_only_what_is_asked_for_is_gathered(case) -> None:
    sums, _ = gather(case.layer, case.hidden_BSD, case.context, [ChannelGram()])
    assert list(sums.tensors) == ["ffn.gram.hh"]
    assert sums.of(ChannelGram())["hh"].equal(case.sums.of(ChannelGram())["hh"])
    with pytest.raises(ValueError, match=r"there are no sums `attention.products`; run calibrate with them."):
        sums.of(PRODUCTS["attention"])
    with pytest.raises(ValueError, match=r"Only one of the two has the sums `attention.gla.mixed.z"):
        sums + case.sums


def test_a_layers_variants_name_what_they_need(llama) -> None:
    def names(*labels: str) -> list[str]:
        return [each.name for each in statistics_of([parse_variant(label) for label in labels], llama.parent.shape, 1)]

    assert names("attention:window=8", "ffn:no_op") == []
    assert names("attention:kv_heads=1", "attention:window=8") == ["attention.inputs", "attention.kv_heads=1"]
    assert names("ffn:width=16", "ffn:width=8") == ["ffn.gram"]
    assert names("ffn:linear", "attention:linear") == ["attention.products", "ffn.products"]


def test_they_survive_a_file(case, tmp_path: Path) -> None:
    save_file(case.sums.to_dict(), tmp_path / "sums.safetensors")
    again = Sums.from_dict(load_file(tmp_path / "sums.safetensors"))
    assert again.tokens == case.sums.tokens
    assert again.tensors.keys() == case.sums.tensors.keys()
    assert all(again.tensors[name].equal(tensor) for name, tensor in case.sums.tensors.items())


@pytest.fixture(scope="module")
def subblocks(trained_parent: Path, text_dir: Path):
    """Of a trained parent's middle layer: 40 chunks of 2 sequences and unseen inputs and updates, float32."""
    parent = open_parent(trained_parent)
    text = sorted(text_dir.glob("*.txt"))[0].read_text(encoding="utf-8")[:200_000]
    ids = torch.tensor(parent.tokenizer()(text, verbose=False).input_ids)
    ids_NS = ids[: len(ids) // 128 * 128].reshape(-1, 128)[:96]
    ends = Ends(parent.config, parent.ends_state(), torch.float32)
    middle = parent.shape.num_layers // 2
    with torch.no_grad():
        chunks = [ends.embed(chunk_BS) for chunk_BS in ids_NS.split(2)]
        for index in range(middle + 1):
            entries = parent.config.blocks[index].values()
            layer = build_layer(parent.config, index, *entries, parent.layer_state(index), torch.float32)
            context = make_context(parent.config, 2, 128, torch.float32, "cpu", [next(iter(entries))])
            if index < middle:
                chunks = [layer(hidden_BSD, context) for hidden_BSD in chunks]
        sums = [gather(layer, hidden_BSD, context, ALL)[0] for hidden_BSD in chunks[:40]]
        unseen_BSD = torch.cat(chunks[40:])
        context = make_context(parent.config, len(unseen_BSD), 128, torch.float32, "cpu", [next(iter(entries))])
        attention_y = layer.attention_update(unseen_BSD, context)
        middle_BSD = unseen_BSD + attention_y
        pairs = {
            "attention": (layer.input_layernorm(unseen_BSD), attention_y),
            "ffn": (layer.post_attention_layernorm(middle_BSD), layer.ffn_update(middle_BSD)),
        }
    return sums, pairs


@pytest.mark.parametrize("slot", ["attention", "ffn"])
@pytest.mark.parametrize(("num_chunks", "over"), [(4, 1.1), (40, 1.05)])
def test_the_penalty_is_near_the_best_of_a_grid_on_unseen_text(subblocks, slot, num_chunks, over) -> None:
    sums, pairs = subblocks
    total = sums[0]
    for chunk in sums[1:num_chunks]:
        total = total + chunk
    products = total.of(PRODUCTS[slot])
    xx_DD, xy_DD = products["xx"], products["xy"]

    def error(tokens: float) -> float:
        x_BSD, y_BSD = pairs[slot]
        weight_DD = ridge(xx_DD, xy_DD, tokens).float()
        return float((x_BSD @ weight_DD.T - y_BSD).pow(2).sum() / y_BSD.pow(2).sum())

    grid = [error(total.tokens * 10 ** (step / 2)) for step in range(-6, 7)]
    ours = error(total.tokens)
    assert ours < 1.0
    assert ours <= min(grid) * over


@pytest.mark.parametrize("slot", ["attention", "ffn"])
def test_float32_sums_give_the_solution_of_float64_sums(subblocks, slot) -> None:
    """Chunk after chunk in float32, as calibrate does it, against the same chunks added in float64."""
    sums, pairs = subblocks
    total = sums[0]
    for chunk in sums[1:]:
        total = total + chunk
    exact = [sum(chunk.of(PRODUCTS[slot])[part].double() for chunk in sums) for part in ("xx", "xy")]
    x_BSD, y_BSD = pairs[slot]
    ours, theirs = (ridge(*products, total.tokens).float() for products in (total.of(PRODUCTS[slot]).values(), exact))
    difference = (x_BSD @ (ours - theirs).T).pow(2).sum() / y_BSD.pow(2).sum()
    assert difference < 1e-9
