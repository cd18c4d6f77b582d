"""What the cache holds, to the byte, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inlay.nas.modeling import InlayCache, InlayForCausalLM

BATCH = 3
HEAD_DIM = 8

LAYERS: dict[int, dict[str, Any]] = {
    0: {"attention": {"kind": "no_op"}},
    1: {"attention": {"kind": "window", "kv_heads": 1, "window": 6, "sinks": 2}},
    2: {"attention": {"kind": "window", "kv_heads": 4, "window": 9, "sinks": 0}},
    3: {"attention": {"kind": "full", "kv_heads": 2}},
}


def storage_bytes(cache: InlayCache) -> list[int]:
    """Memory that each layer keeps alive, not what its tensors show of it."""
    return [
        sum(states.untyped_storage().nbytes() for states in (layer.keys, layer.values) if states is not None)
        for layer in cache.layers
    ]


def expected_bytes(tokens: int) -> list[int]:
    held = [(0, 0), (1, min(tokens, 6 + 2)), (4, min(tokens, 9)), (2, tokens)]
    return [2 * BATCH * heads * keys * HEAD_DIM * 4 for heads, keys in held]


def run(child: InlayForCausalLM, cache: InlayCache, ids_BS: torch.Tensor, mask_BT: torch.Tensor | None = None) -> Any:
    with torch.no_grad():
        return child(ids_BS, attention_mask=mask_BT, past_key_values=cache).logits


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("chunks", [(20, 1, 1, 1), (1,) * 12, (3, 4, 5, 6), (8, 1, 9, 2), (7, 1, 1, 1, 5)], ids=str)
def test_bytes(chunks: tuple[int, ...], padded: bool, make_child: Any) -> None:
    child = make_child("llama", LAYERS)
    cache = child.new_cache()
    total = sum(chunks)
    mask_BT = torch.ones(BATCH, total, dtype=torch.long)
    if padded:
        mask_BT[1, : total // 3] = 0
        mask_BT[2, : total - 2] = 0
    seen = 0
    for chunk in chunks:
        seen += chunk
        run(child, cache, torch.randint(2, 97, (BATCH, chunk)), mask_BT[:, :seen] if padded else None)
        assert storage_bytes(cache) == expected_bytes(seen)
        assert cache.get_seq_length() == seen


@pytest.mark.parametrize("window", [1, 2, 5])
@pytest.mark.parametrize("sinks", [0, 1, 3])
def test_chunks_of_every_size_agree(window: int, sinks: int, make_child: Any) -> None:
    """Any way of cutting a padded batch gives the logits of one uncut forward."""
    entry = {"kind": "window", "kv_heads": 2, "window": window, "sinks": sinks}
    child = make_child("llama", {i: {"attention": entry} for i in range(4)})
    ids_BT = torch.randint(2, 97, (4, 15))
    mask_BT = (torch.arange(15)[None] >= torch.tensor([0, 2, 7, 13])[:, None]).long()
    with torch.no_grad():
        expected = child(ids_BT, attention_mask=mask_BT, use_cache=False).logits
    for size in (1, 2, 4, 7):
        cache = child.new_cache()
        parts = [
            run(child, cache, ids_BT[:, start : start + size], mask_BT[:, : start + size])
            for start in range(0, 15, size)
        ]
        real = mask_BT.bool()
        torch.testing.assert_close(torch.cat(parts, dim=1)[real], expected[real], rtol=0, atol=2e-5)


def test_crop_takes_tokens_back(make_child: Any) -> None:
    child = make_child("llama", LAYERS)
    ids_BS = torch.randint(2, 97, (BATCH, 30))
    plain, cropped = child.new_cache(), child.new_cache()
    cropped.activate_past_recording()
    run(child, plain, ids_BS[:, :20])
    run(child, cropped, ids_BS[:, :15])
    cropped.crop(0)
    run(child, cropped, torch.cat((ids_BS[:, 15:20], torch.randint(2, 97, (BATCH, 6))), dim=1))
    cropped.crop(-6)
    assert cropped.get_seq_length() == 20
    for ours, theirs in zip(cropped.layers, plain.layers, strict=True):
        if theirs.keys is not None:
            assert ours.keys.shape == theirs.keys.shape
    torch.testing.assert_close(
        run(child, cropped, ids_BS[:, 20:]), run(child, plain, ids_BS[:, 20:]), rtol=0, atol=2e-5
    )


def test_crop_of_one_needs_no_recording(make_child: Any) -> None:
    """The key that a window drops last is still there."""
    child = make_child("llama", LAYERS)
    ids_BS = torch.randint(2, 97, (BATCH, 22))
    plain, cropped = child.new_cache(), child.new_cache()
    run(child, plain, ids_BS[:, :20])
    run(child, cropped, ids_BS[:, :21])
    cropped.crop(-1)
    torch.testing.assert_close(
        run(child, cropped, ids_BS[:, 20:]), run(child, plain, ids_BS[:, 20:]), rtol=0, atol=2e-5
    )


def test_crop_refuses_what_a_window_forgot(make_child: Any) -> None:
    child = make_child("llama", LAYERS)
    cache = child.new_cache()
    run(child, cache, torch.randint(2, 97, (BATCH, 20)))
    with pytest.raises(
        ValueError, match="2 tokens cannot be taken back: a window of 6 with 2 sinks holds 8 of 20 keys"
    ):
        cache.crop(-2)
    with pytest.raises(ValueError, match="remove 21 of 20 tokens"):
        cache.crop(-21)
    with pytest.raises(ValueError, match="negative number of tokens to remove; given 3"):
        cache.crop(3)
    assert cache.get_seq_length() == 20


def test_reset_empties(make_child: Any) -> None:
    child = make_child("llama", LAYERS)
    cache = child.new_cache()
    ids_BS = torch.randint(2, 97, (BATCH, 20))
    first = run(child, cache, ids_BS)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert torch.equal(run(child, cache, ids_BS), first)


def test_rows_are_reordered_with_their_sinks(make_child: Any) -> None:
    child = make_child("llama", LAYERS)
    ids_BT = torch.randint(2, 97, (BATCH, 20))
    mask_BT = (torch.arange(20)[None] >= torch.tensor([0, 6, 11])[:, None]).long()
    order = torch.tensor([2, 0, 0, 1])
    plain, reordered = child.new_cache(), child.new_cache()
    run(child, plain, ids_BT[order, :18], mask_BT[order, :18])
    run(child, reordered, ids_BT[:, :18], mask_BT[:, :18])
    reordered.batch_select_indices(order)
    expected = run(child, plain, ids_BT[order, 18:], mask_BT[order])
    got = run(child, reordered, ids_BT[order, 18:], mask_BT[order])
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)

    repeated = child.new_cache()
    run(child, repeated, ids_BT[:, :18], mask_BT[:, :18])
    repeated.batch_repeat_interleave(2)
    repeated.reorder_cache(torch.tensor([1, 0, 2, 3, 5, 4]))
    twice = torch.tensor([0, 0, 1, 1, 2, 2])
    got = run(child, repeated, ids_BT[twice, 18:], mask_BT[twice])
    expected = run(child, reordered_from(child, ids_BT, mask_BT), ids_BT[:, 18:], mask_BT)
    torch.testing.assert_close(got, expected[twice], rtol=0, atol=2e-5)


def reordered_from(child: InlayForCausalLM, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> InlayCache:
    cache = child.new_cache()
    run(child, cache, ids_BT[:, :18], mask_BT[:, :18])
    return cache


def test_lost_padding_is_refused(make_child: Any) -> None:
    child = make_child("llama", LAYERS)
    cache = child.new_cache()
    mask_BT = torch.ones(BATCH, 20, dtype=torch.long)
    mask_BT[1, :4] = 0
    run(child, cache, torch.randint(2, 97, (BATCH, 20)), mask_BT)
    with pytest.raises(ValueError, match="filled with another padding than the attention_mask now says"):
        run(child, cache, torch.randint(2, 97, (BATCH, 1)))


def test_masks_must_cover_all_columns(make_child: Any) -> None:
    child = make_child("llama", LAYERS)
    mask_BT = torch.zeros(BATCH, 5, dtype=torch.long)
    with pytest.raises(ValueError, match=r"shape \(3, 5\); it must cover all 7 columns \(0 in the cache and 7 new\)"):
        run(child, child.new_cache(), torch.randint(2, 97, (BATCH, 7)), mask_BT)


def test_wide_windows_are_full(make_child: Any) -> None:
    wide = {"kind": "window", "kv_heads": 2, "window": 1000, "sinks": 4}
    child = make_child("llama", {i: {"attention": wide} for i in range(4)})
    full = make_child("llama", {})
    cache = child.new_cache()
    ids_BS = torch.randint(2, 97, (BATCH, 25))
    with torch.no_grad():
        assert torch.equal(child(ids_BS, past_key_values=cache).logits, full(ids_BS).logits)
    assert storage_bytes(cache) == [2 * BATCH * 2 * 25 * HEAD_DIM * 4] * 4
