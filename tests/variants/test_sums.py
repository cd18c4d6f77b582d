"""Calibration sums against the same sums written out in float64."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from inlay.nas.families import open_parent
from inlay.nas.modeling.modeling_inlay import Ends, build_layer, make_context
from inlay.nas.variants.linear import ridge
from inlay.nas.variants.sums import CalibrationSums

NAMES = ("attention_xx", "attention_xy", "ffn_xx", "ffn_xy")


def written_out(case) -> dict[str, torch.Tensor]:
    layer, hidden_BSD = case.layer, case.hidden_BSD
    attention_x = layer.input_layernorm(hidden_BSD)
    attention_y = layer.attention_update(hidden_BSD, case.context)
    middle_BSD = hidden_BSD + attention_y
    ffn_x = layer.post_attention_layernorm(middle_BSD)
    channels_BSF = layer.mlp.act_fn(layer.mlp.gate_proj(ffn_x)) * layer.mlp.up_proj(ffn_x)
    ffn_y = layer.mlp.down_proj(channels_BSF)
    rows = {
        name: t.flatten(0, 1).double()
        for name, t in {"ax": attention_x, "ay": attention_y, "fx": ffn_x, "fy": ffn_y, "c": channels_BSF}.items()
    }
    return {
        "attention_xx": rows["ax"].T @ rows["ax"],
        "attention_xy": rows["ax"].T @ rows["ay"],
        "ffn_xx": rows["fx"].T @ rows["fx"],
        "ffn_xy": rows["fx"].T @ rows["fy"],
        "channel_abs": rows["c"].abs().sum(dim=0),
    }


def test_they_are_the_sums_of_the_definition(case) -> None:
    for name, expected in written_out(case).items():
        given = getattr(case.sums, name)
        assert given.dtype == torch.float32
        torch.testing.assert_close(given.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert case.sums.tokens == 4 * 32


def test_the_output_is_that_of_the_layer(case) -> None:
    _, out_BSD = CalibrationSums.of(case.layer, case.hidden_BSD, case.context, want_products=False)
    assert out_BSD.equal(case.layer(case.hidden_BSD, case.context))


def test_nothing_is_left_in_the_layer(case) -> None:
    CalibrationSums.of(case.layer, case.hidden_BSD, case.context, want_products=True)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in case.layer.modules())


def test_chunks_add_up(case) -> None:
    parent, entry = case.parent, case.parent.config.blocks[1]["attention"]
    context = make_context(parent.config, 2, 32, getattr(torch, parent.shape.dtype), "cpu", [entry])
    first, second = (CalibrationSums.of(case.layer, half, context, True)[0] for half in case.hidden_BSD.split(2))
    joined = first + second
    assert joined.tokens == case.sums.tokens
    for name in (*NAMES, "channel_abs"):
        expected = getattr(case.sums, name)
        torch.testing.assert_close(getattr(joined, name), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_without_products(case) -> None:
    sums, _ = CalibrationSums.of(case.layer, case.hidden_BSD, case.context, want_products=False)
    assert sums.channel_abs.equal(case.sums.channel_abs)
    assert sums.products("attention") is None
    assert (sums + sums).products("ffn") is None
    with pytest.raises(ValueError, match="Only one of the two sums has `attention_xx`"):
        sums + case.sums


@pytest.mark.parametrize("want_products", [False, True])
def test_they_survive_a_file(case, tmp_path: Path, want_products: bool) -> None:
    sums, _ = CalibrationSums.of(case.layer, case.hidden_BSD, case.context, want_products)
    save_file(sums.to_dict(), tmp_path / "sums.safetensors")
    again = CalibrationSums.from_dict(load_file(tmp_path / "sums.safetensors"))
    assert again.tokens == sums.tokens
    for name in (*NAMES, "channel_abs"):
        ours, theirs = getattr(sums, name), getattr(again, name)
        assert theirs is None if ours is None else theirs.equal(ours)


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
        sums = [CalibrationSums.of(layer, hidden_BSD, context, True)[0] for hidden_BSD in chunks[:40]]
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
    xx_DD, xy_DD = total.products(slot)

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
    exact = [sum(chunk.products(slot)[part].double() for chunk in sums) for part in (0, 1)]
    x_BSD, y_BSD = pairs[slot]
    ours, theirs = (ridge(*products, total.tokens).float() for products in (total.products(slot), exact))
    difference = (x_BSD @ (ours - theirs).T).pow(2).sum() / y_BSD.pow(2).sum()
    assert difference < 1e-9
