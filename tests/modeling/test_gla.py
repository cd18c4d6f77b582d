"""Gated linear attention: its chunks against its recurrence, and both against the formula written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from inlay.nas.modeling import InlayForCausalLM
from inlay.nas.modeling.gla_modules_inlay import CHUNK, LEAST_LOG_GATE, StateLayer, Tokens, chunked, recurrent

GLA = {"kind": "gla", "key_heads": 2, "rank": 4}
HEADS, GROUPS, KEY, VALUE = 3, 2, 8, 5


def tokens_of(length: int, least: float = -0.3, documents: torch.Tensor | None = None) -> Tokens:
    """Random ones, as exact as float64 is; gates down to exp(least)."""
    wide = {"dtype": torch.float64}
    return Tokens(
        torch.rand(2, GROUPS, HEADS, length, KEY, **wide),
        torch.rand(2, GROUPS, length, KEY, **wide),
        torch.randn(2, GROUPS, length, VALUE, **wide),
        torch.rand(2, GROUPS, length, KEY, **wide) * least,
        documents,
    )


def written_out(tokens: Tokens) -> torch.Tensor:
    """Every pair of tokens with the product of the gates between them; nothing else is in common with the code."""
    query, key, value, gate = tokens.query_BGRSK, tokens.key_BGSK, tokens.value_BGSV, tokens.log_gate_BGSK.exp()
    found = torch.zeros(*query.shape[:4], VALUE, dtype=torch.float64)
    for to in range(key.shape[2]):
        for since in range(to + 1):
            faded = gate[:, :, since + 1 : to + 1].prod(dim=2)
            weight = torch.einsum("bgrk,bgk->bgr", query[:, :, :, to], key[:, :, since] * faded)
            if tokens.documents_BS is not None:
                weight = weight * (tokens.documents_BS[:, to] == tokens.documents_BS[:, since])[:, None, None]
            found[:, :, :, to] += weight[..., None] * value[:, :, since, None]
    return found


@pytest.mark.parametrize("length", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
def test_chunks_are_the_recurrence_and_the_formula(length: int) -> None:
    tokens = tokens_of(length)
    by_chunk, state = chunked(tokens, tokens.empty_state())
    by_token, same_state = recurrent(tokens, tokens.empty_state())
    torch.testing.assert_close(by_chunk, by_token, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, same_state, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(by_token, written_out(tokens), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cut", [1, 7, CHUNK, CHUNK + 9])
def test_a_state_is_carried_on(cut: int) -> None:
    tokens = tokens_of(2 * CHUNK + 5)
    whole, end = chunked(tokens, tokens.empty_state())
    begun = tokens.first(cut)
    first, state = chunked(begun, begun.empty_state())
    rest = Tokens(
        tokens.query_BGRSK[:, :, :, cut:],
        *(rows[:, :, cut:] for rows in (tokens.key_BGSK, tokens.value_BGSV, tokens.log_gate_BGSK)),
    )
    for run in (chunked, recurrent):
        second, last = run(rest, state)
        torch.testing.assert_close(torch.cat((first, second), dim=3), whole, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(last, end, rtol=1e-12, atol=1e-12)


def test_the_least_gates_are_safe_in_float32() -> None:
    """Everything at the floor, values and gradients: nothing overflows, and chunks still are the recurrence."""
    exact = tokens_of(3 * CHUNK)
    gate_BGSK = torch.full_like(exact.log_gate_BGSK, LEAST_LOG_GATE).float().requires_grad_()
    rows = (exact.query_BGRSK.float() * 30, exact.key_BGSK.float() * 30, exact.value_BGSV.float())
    tokens = Tokens(*rows, gate_BGSK)
    found, state = chunked(tokens, tokens.empty_state())
    expected, _ = recurrent(tokens, tokens.empty_state())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    (found.square().sum() + state.square().sum()).backward()
    assert gate_BGSK.grad is not None
    assert gate_BGSK.grad.isfinite().all()


def test_packed_documents_do_not_see_each_other() -> None:
    length = 2 * CHUNK + 9
    opens = torch.zeros(2, length, dtype=torch.long)
    opens[0, [5, 6, CHUNK, CHUNK + 20]] = 1
    opens[1, [2 * CHUNK + 1]] = 1
    tokens = tokens_of(length, documents=opens.cumsum(-1))
    expected = written_out(tokens)
    for run in (chunked, recurrent):
        found, state = run(tokens, tokens.empty_state())
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        last = tokens.key_BGSK[1, :, 2 * CHUNK + 1 :, :, None] * tokens.value_BGSV[1, :, 2 * CHUNK + 1 :, None, :]
        after = (
            tokens.log_gate_BGSK[1, :, 2 * CHUNK + 1 :].flip(1).cumsum(1).flip(1)
            - tokens.log_gate_BGSK[1, :, 2 * CHUNK + 1 :]
        )
        torch.testing.assert_close(state[1], (last * after.exp()[..., None]).sum(1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_packed_rows_of_a_model(family: str, make_child: Any) -> None:
    child = make_child(family, {i: {"attention": GLA} for i in range(4)})
    ids_BS = torch.randint(2, 97, (1, 50))
    positions_BS = torch.cat((torch.arange(9), torch.arange(41)))[None]
    with torch.no_grad():
        packed = child(ids_BS, position_ids=positions_BS, use_cache=False).logits
        apart = [child(part, use_cache=False).logits for part in (ids_BS[:, :9], ids_BS[:, 9:])]
    torch.testing.assert_close(packed, torch.cat(apart, dim=1), rtol=1e-4, atol=1e-4)


def test_logits_token_by_token_in_pieces_and_behind_padding(make_child: Any) -> None:
    child: InlayForCausalLM = make_child("llama", {i: {"attention": GLA} for i in (0, 2)})
    ids_BS = torch.randint(2, 97, (2, 45))
    with torch.no_grad():
        whole = child(ids_BS, use_cache=False).logits
        for cuts in ([1] * 45, [40] + [1] * 5, [3, 33, 9]):
            cache, places = child.new_cache(), ids_BS.split(cuts, dim=1)
            pieces = [child(piece, past_key_values=cache).logits for piece in places]
            torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-4, atol=1e-4)
        padded_BS = torch.cat((torch.zeros(2, 37, dtype=torch.long), ids_BS), dim=1)
        mask_BS = (torch.arange(82) >= 37).long().expand(2, -1)
        cache = child.new_cache()
        first = child(padded_BS[:, :60], attention_mask=mask_BS[:, :60], past_key_values=cache).logits[:, 37:]
        second = child(padded_BS[:, 60:], attention_mask=mask_BS, past_key_values=cache).logits
    torch.testing.assert_close(torch.cat((first, second), dim=1), whole, rtol=1e-4, atol=1e-4)


def test_a_bfloat16_child_keeps_a_float32_state(make_child: Any) -> None:
    child = make_child("llama", {1: {"attention": GLA}}).to(torch.bfloat16)
    cache = child.new_cache()
    child(torch.randint(2, 97, (2, 9)), past_key_values=cache)
    layer = cache.layers[1]
    assert isinstance(layer, StateLayer)
    assert layer.keys is not None
    assert layer.values is not None
    assert layer.keys.dtype == layer.values.dtype == torch.float32
    assert (layer.keys.shape, layer.values.shape) == ((2, 2, 8, 8), (2, 2, 8, 1))


def test_tokens_are_taken_back_only_where_they_were_kept(make_child: Any) -> None:
    child = make_child("llama", {1: {"attention": GLA}})
    ids_BS = torch.randint(2, 97, (1, 20))
    cache, expected = child.new_cache(), child.new_cache()
    with torch.no_grad():
        child(ids_BS[:, :12], past_key_values=expected)
        child(ids_BS[:, :9], past_key_values=cache)
        with pytest.raises(ValueError, match="1 tokens cannot be taken back from a state that holds 0 apart; call act"):
            cache.crop(-1)
        cache = child.new_cache()
        child(ids_BS[:, :9], past_key_values=cache)
        cache.activate_past_recording()
        child(ids_BS[:, 9:20], past_key_values=cache)
        cache.crop(-8)
        for each in (cache, expected):
            each.crop(0)
        logits = [child(ids_BS[:, 12:15], past_key_values=each).logits for each in (cache, expected)]
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)


def test_caches_and_masks_that_have_no_place_for_a_state(make_child: Any) -> None:
    child = make_child("llama", {1: {"attention": GLA}})
    ids_BS = torch.randint(2, 97, (1, 9))
    with pytest.raises(ValueError, match="layer 1 holds a state, for which a DynamicCache has no place"):
        child(ids_BS, past_key_values=DynamicCache(config=child.config))
    with pytest.raises(ValueError, match="a 4D attention_mask cannot hide tokens from a state; pass a 2D one"):
        child(ids_BS, attention_mask=torch.ones(1, 1, 9, 9, dtype=torch.bool).tril())
