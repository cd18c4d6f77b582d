"""Every way of generating gives the tokens of the forward without a cache."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from inlay.nas.modeling import InlayCache, InlayForCausalLM

WINDOW = {"kind": "window", "kv_heads": 2, "window": 5, "sinks": 0}
SINKS = {"kind": "window", "kv_heads": 1, "window": 5, "sinks": 3}
NO_OP = {"kind": "no_op"}
LINEAR = {"kind": "linear"}

CHILDREN: dict[str, dict[int, dict[str, Any]]] = {
    "layer 0 no_op": {0: {"attention": NO_OP}},
    "layer 0 nothing": {0: {"attention": NO_OP, "ffn": NO_OP}},
    "all attention no_op": {i: {"attention": NO_OP} for i in range(4)},
    "all windows": {i: {"attention": WINDOW} for i in range(4)},
    "all windows with sinks": {i: {"attention": SINKS} for i in range(4)},
    "window after no_op": {
        0: {"attention": NO_OP},
        1: {"attention": SINKS},
        2: {"attention": LINEAR},
        3: {"attention": SINKS},
    },
    "linear": {0: {"attention": LINEAR, "ffn": LINEAR}, 2: {"attention": LINEAR}},
    "mixed kv heads": {
        0: {"attention": {"kind": "full", "kv_heads": 4}},
        2: {"attention": {"kind": "full", "kv_heads": 1}},
    },
    "fewer heads": {
        0: {"attention": {"kind": "full", "kv_heads": 1, "heads": 2}},
        1: {"attention": {"kind": "full", "kv_heads": 3, "heads": 3}},
        2: {"attention": {"kind": "window", "kv_heads": 1, "heads": 1, "window": 5, "sinks": 3}},
    },
    "gla": {
        0: {"attention": {"kind": "gla", "key_heads": 2, "rank": 4}},
        2: {"attention": {"kind": "gla", "key_heads": 1, "rank": 2, "heads": 2}},
        3: {"attention": SINKS},
    },
    "all gla": {i: {"attention": {"kind": "gla", "key_heads": 4, "rank": 4}} for i in range(4)},
    "everything": {
        0: {"attention": NO_OP, "ffn": {"kind": "gated", "width": 8}},
        1: {"attention": {"kind": "window", "kv_heads": 4, "window": 7, "sinks": 1}, "ffn": NO_OP},
        2: {"attention": SINKS, "ffn": LINEAR},
        3: {"attention": {"kind": "full", "kv_heads": 1}},
    },
}
NEW_TOKENS = 16


@pytest.fixture(params=list(CHILDREN))
def child(request: pytest.FixtureRequest, make_child: Any) -> InlayForCausalLM:
    return make_child("llama", CHILDREN[request.param])


def slow(*lengths: int) -> Any:
    """Such a batch, tried before a release."""
    return pytest.param(lengths, marks=pytest.mark.slow)


def prompts(*lengths: int) -> dict[str, torch.Tensor]:
    """A left-padded batch with that many real tokens a row."""
    longest = max(lengths)
    ids_BS = torch.randint(2, 97, (len(lengths), longest))
    mask_BS = (torch.arange(longest)[None] >= longest - torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids_BS * mask_BS, "attention_mask": mask_BS}


def greedy(model: InlayForCausalLM, inputs: dict[str, torch.Tensor], **arguments: Any) -> torch.Tensor:
    return model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS, **arguments)


def without_cache(model: InlayForCausalLM, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Greedy tokens row by row, unpadded, by whole forwards: nothing of generate or a cache in it."""
    rows = []
    for ids_S, mask_S in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        ids_1S = ids_S[mask_S.bool()][None]
        for _ in range(NEW_TOKENS):
            with torch.no_grad():
                next_11 = model(ids_1S, use_cache=False).logits[:, -1:].argmax(-1)
            ids_1S = torch.cat((ids_1S, next_11), dim=1)
        rows.append(ids_1S[0, -NEW_TOKENS:])
    return torch.stack(rows)


def refuse_states(child: InlayForCausalLM) -> None:
    if child.model.is_recurrent:
        pytest.skip("stock caches have no place for a state, and test_gla.py sees them refused")


def test_one_prompt(child: InlayForCausalLM) -> None:
    inputs = prompts(9)
    assert torch.equal(greedy(child, inputs)[:, 9:], without_cache(child, inputs))


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_other_families(family: str, make_child: Any) -> None:
    child = make_child(family, CHILDREN["everything"])
    inputs = prompts(12, 5, 1)
    assert torch.equal(greedy(child, inputs)[:, 12:], without_cache(child, inputs))


def test_short_prompt(child: InlayForCausalLM) -> None:
    inputs = prompts(1)
    assert torch.equal(greedy(child, inputs)[:, 1:], without_cache(child, inputs))


@pytest.mark.parametrize("lengths", [(12, 5, 1), slow(4, 3, 2), slow(20, 19, 2), (2, 30)], ids=str)
def test_left_padding(child: InlayForCausalLM, lengths: tuple[int, ...]) -> None:
    inputs = prompts(*lengths)
    assert torch.equal(greedy(child, inputs)[:, max(lengths) :], without_cache(child, inputs))


@pytest.mark.parametrize("chunk", [pytest.param(1, marks=pytest.mark.slow), 3, 7])
@pytest.mark.parametrize("lengths", [slow(17), (17, 9, 2)], ids=str)
def test_chunked_prefill(child: InlayForCausalLM, chunk: int, lengths: tuple[int, ...]) -> None:
    inputs = prompts(*lengths)
    got = greedy(child, inputs, prefill_chunk_size=chunk)[:, max(lengths) :]
    assert torch.equal(got, without_cache(child, inputs))


def test_static_cache(child: InlayForCausalLM) -> None:
    refuse_states(child)
    inputs = prompts(11, 4)
    got = greedy(child, inputs, cache_implementation="static")[:, 11:]
    assert torch.equal(got, without_cache(child, inputs))


def test_stock_dynamic_cache(child: InlayForCausalLM) -> None:
    refuse_states(child)
    inputs = prompts(11, 4)
    got = greedy(child, inputs, past_key_values=DynamicCache(config=child.config))[:, 11:]
    assert torch.equal(got, without_cache(child, inputs))


@pytest.mark.parametrize("lengths", [slow(9), (13, 4)], ids=str)
def test_beams(child: InlayForCausalLM, lengths: tuple[int, ...]) -> None:
    inputs = prompts(*lengths)
    arguments = {"num_beams": 3, "do_sample": False, "max_new_tokens": NEW_TOKENS}
    expected = child.generate(**inputs, use_cache=False, **arguments)
    assert torch.equal(child.generate(**inputs, **arguments), expected)


def test_prompt_lookup(child: InlayForCausalLM) -> None:
    ids_11 = torch.randint(2, 97, (1, 4)).repeat(1, 4)
    inputs = {"input_ids": ids_11, "attention_mask": torch.ones_like(ids_11)}
    assert torch.equal(greedy(child, inputs, prompt_lookup_num_tokens=3)[:, 16:], without_cache(child, inputs))


def test_assisted_by_and_assisting(child: InlayForCausalLM) -> None:
    """A perturbed copy drafts: some of its tokens are taken, some are taken back."""
    draft = copy.deepcopy(child)
    for parameter in draft.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    inputs = prompts(9)
    assert torch.equal(greedy(child, inputs, assistant_model=draft)[:, 9:], without_cache(child, inputs))
    assert torch.equal(greedy(draft, inputs, assistant_model=child)[:, 9:], without_cache(draft, inputs))


def test_continued_conversation(child: InlayForCausalLM) -> None:
    """A cache handed back by one call is taken by the next, with more tokens than one."""
    inputs = prompts(9)
    first = greedy(child, inputs, return_dict_in_generate=True)
    ids_1S = torch.cat((first.sequences, torch.randint(2, 97, (1, 7))), dim=1)
    more = {"input_ids": ids_1S, "attention_mask": torch.ones_like(ids_1S)}
    got = greedy(child, more, past_key_values=first.past_key_values)[:, ids_1S.shape[1] :]
    assert torch.equal(got, without_cache(child, more))


def test_eager(child: InlayForCausalLM) -> None:
    inputs = prompts(11, 4)
    expected = without_cache(child, inputs)
    child.set_attn_implementation("eager")
    assert torch.equal(greedy(child, inputs)[:, 11:], expected)


def test_inputs_embeds(child: InlayForCausalLM) -> None:
    inputs = prompts(9)
    embeds_BSD = child.get_input_embeddings()(inputs["input_ids"])
    got = child.generate(
        inputs_embeds=embeds_BSD,
        attention_mask=inputs["attention_mask"],
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
    )
    assert torch.equal(got, without_cache(child, inputs))


def test_generate_makes_the_saving_cache(make_child: Any) -> None:
    child = make_child("llama", CHILDREN["all windows with sinks"])
    cache = greedy(child, prompts(20), return_dict_in_generate=True).past_key_values
    assert isinstance(cache, InlayCache)
    assert [layer.keys.shape[2] for layer in cache.layers] == [8] * 4


def test_a_cache_that_cannot_count_is_refused(make_child: Any) -> None:
    child = make_child("llama", CHILDREN["layer 0 no_op"])
    with pytest.raises(ValueError, match=r"counts tokens at layer 0, which has no attention \(the first is 1\)"):
        child(torch.randint(2, 97, (1, 4)), past_key_values=DynamicCache())


def test_4d_masks_do_not_hide_windows(make_child: Any) -> None:
    child = make_child("llama", CHILDREN["all windows"])
    mask = torch.ones(1, 1, 9, 9, dtype=torch.bool).tril()
    for cache in (None, child.new_cache(), StaticCache(config=child.config, max_cache_len=9)):
        with pytest.raises(ValueError, match="4D attention_mask would replace the windows"):
            child(torch.randint(2, 97, (1, 9)), attention_mask=mask, past_key_values=cache)


def test_flash_attention_knows_no_windows(make_child: Any) -> None:
    child = make_child("llama", CHILDREN["all windows"])
    child.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="knows no windows with sinks; load the model with one of sdpa, eager"):
        child(torch.randint(2, 97, (1, 9)))
