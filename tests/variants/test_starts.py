"""The training-free starts against what they should compute."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import silu

from inlay.nas.modeling import build_layer
from inlay.nas.modeling.full_inlay import KEY, QUERY, VALUE
from inlay.nas.variants import Place, Variant
from inlay.nas.variants.linear import linear_from_products, ridge
from inlay.nas.variants.statistics import ChannelActivity, Sums
from inlay.nas.variants.width import channel_contribution, most_contributing

GATE, UP, DOWN = (f"mlp.{name}_proj.weight" for name in ("gate", "up", "down"))


def built(case, slot, entry, state):
    entries = {"attention": None, "ffn": None} | {slot: entry}
    dtype = getattr(torch, case.parent.shape.dtype)
    return build_layer(case.parent.config, 1, entries["attention"], entries["ffn"], state, dtype)


class TestKvHeads:
    def test_as_many_as_the_parent_is_the_parent(self, case) -> None:
        shape = case.parent.shape
        pooled = Variant("attention", "kv_heads", own_heads(shape)).start(shape, 1, case.state)
        own = Variant("attention", "parent").start(shape, 1, case.state)
        assert pooled.keys() == own.keys()
        assert all(pooled[name].equal(own[name]) for name in own)

    def test_heads_are_averaged_in_consecutive_groups(self, case) -> None:
        blocks = [
            dict(block) | {"attention": block["attention"] | {"kv_heads": 4}} for block in case.parent.shape.blocks
        ]
        shape = replace(case.parent.shape, q_heads=4, blocks=tuple(blocks))
        names = [name for name in case.state if name.startswith((KEY, VALUE))]
        state = case.state | {name: torch.randn(4 * shape.head_dim, *case.state[name].shape[1:]) for name in names}
        pooled = Variant("attention", "kv_heads", 2).start(shape, 1, state)
        assert len(names) == (4 if shape.qkv_bias else 2)
        for name in names:
            heads = state[name].split(shape.head_dim)
            torch.testing.assert_close(pooled[name], torch.cat([(heads[0] + heads[1]) / 2, (heads[2] + heads[3]) / 2]))

    def test_equal_heads_lose_nothing(self, case) -> None:
        """Weights and biases: with both heads alike, one pooled head gives the same update."""
        shape, state = case.parent.shape, dict(case.state)
        for name in [name for name in state if name.startswith((KEY, VALUE))]:
            state[name] = torch.cat([state[name][: shape.head_dim]] * own_heads(shape))
        variant = Variant("attention", "kv_heads", 1)
        full = built(case, "attention", shape.parent_entry(1, "attention"), own_attention(shape, state))
        pooled = built(case, "attention", variant.entry(shape, 1), variant.start(shape, 1, state))
        torch.testing.assert_close(
            pooled.attention_update(case.hidden_BSD, case.context), full.attention_update(case.hidden_BSD, case.context)
        )

    def test_everything_else_is_the_parents(self, case) -> None:
        pooled = Variant("attention", "kv_heads", 1).start(case.parent.shape, 1, case.state)
        others = [name for name in pooled if not name.startswith((KEY, VALUE))]
        assert f"{QUERY}.weight" in others
        assert all(pooled[name] is case.state[name] for name in others)


class TestWindow:
    def test_weights_are_the_parents(self, case) -> None:
        started = Variant("attention", "window", (8, 4)).start(case.parent.shape, 1, case.state)
        assert all(started[name] is case.state[name] for name in started)

    def test_a_sliding_parent_keeps_its_window_when_heads_are_pooled(self, tiny_parent) -> None:
        from inlay.nas.families import open_parent

        shape = open_parent(tiny_parent("mistral")).shape
        entry = Variant("attention", "kv_heads", 1).entry(shape, 0)
        assert entry == {"kind": "window", "kv_heads": 1, "window": 24, "sinks": 0}


class TestWidth:
    def test_it_is_the_hand_sliced_ffn(self, case) -> None:
        shape, variant = case.parent.shape, Variant("ffn", "width", 16)
        kept = most_contributing(channel_contribution(case.sums, case.state), 16)
        started = variant.start(shape, 1, case.state, case.sums)
        assert started[GATE].equal(case.state[GATE][kept])
        assert started[UP].equal(case.state[UP][kept])
        assert started[DOWN].equal(case.state[DOWN][:, kept])
        normed_BSD = case.layer.post_attention_layernorm(case.hidden_BSD)
        gate, up, down = (case.state[name] for name in (GATE, UP, DOWN))
        channels_BSF = silu(normed_BSD @ gate[kept].T) * (normed_BSD @ up[kept].T)
        narrow = built(case, "ffn", variant.entry(shape, 1), started)
        torch.testing.assert_close(narrow.ffn_update(case.hidden_BSD), channels_BSF @ down[:, kept].T)

    def test_all_channels_are_the_parent(self, case) -> None:
        shape = case.parent.shape
        started = Variant("ffn", "width", shape.parent_entry(1, "ffn")["width"]).start(shape, 1, case.state, case.sums)
        assert all(started[name].equal(case.state[name]) for name in started)

    def test_the_channels_that_matter_are_kept(self, llama) -> None:
        """Channels that are silent, or that the down projection ignores, go first; the rest gives the same update."""
        shape, state = llama.parent.shape, dict(llama.state)
        silent, ignored = [3, 20, 41], [0, 7, 47]
        state[UP] = state[UP].index_fill(0, torch.tensor(silent), 0)
        state[DOWN] = state[DOWN].index_fill(1, torch.tensor(ignored), 0)
        full = built(llama, "ffn", shape.parent_entry(1, "ffn"), own_ffn(shape, state))
        normed_BSD = full.post_attention_layernorm(llama.hidden_BSD)
        channels_BSF = full.mlp.act_fn(full.mlp.gate_proj(normed_BSD)) * full.mlp.up_proj(normed_BSD)
        tensors = {**llama.sums.tensors, "ffn.activity.abs": channels_BSF.abs().sum(dim=(0, 1))}
        sums = replace(llama.sums, tensors=tensors)
        kept = most_contributing(channel_contribution(sums, state), 42)
        assert set(range(48)) - set(kept.tolist()) == {*silent, *ignored}
        variant = Variant("ffn", "width", 42)
        narrow = built(llama, "ffn", variant.entry(shape, 1), variant.start(shape, 1, state, sums))
        torch.testing.assert_close(narrow.ffn_update(llama.hidden_BSD), full.ffn_update(llama.hidden_BSD))

    def test_contribution_is_mean_activation_times_column_norm(self, llama) -> None:
        contribution_F = channel_contribution(llama.sums, llama.state)
        mean_F = llama.sums.of(ChannelActivity())["abs"] / llama.sums.tokens
        norm_F = llama.state[DOWN].pow(2).sum(dim=0).sqrt()
        torch.testing.assert_close(contribution_F.float(), mean_F * norm_F)

    def test_order_is_kept_and_ties_go_to_the_first(self) -> None:
        assert most_contributing(torch.tensor([1.0, 5.0, 2.0, 2.0, 9.0, 2.0]), 4).tolist() == [1, 2, 3, 4]


class TestLinear:
    @pytest.mark.parametrize("slot", ["attention", "ffn"])
    def test_an_exactly_linear_map_is_recovered(self, llama, slot) -> None:
        generator = torch.Generator().manual_seed(2)
        tokens, size = 20_000, llama.parent.shape.hidden
        x_ND = torch.randn(tokens, size, generator=generator)
        weight_DD = torch.randn(size, size, generator=generator)
        y_ND = x_ND @ weight_DD.T
        sums = Sums(tokens, {f"{slot}.products.xx": x_ND.T @ x_ND, f"{slot}.products.xy": x_ND.T @ y_ND})
        started = Variant(slot, "linear").start(llama.parent.shape, 1, llama.state, sums)
        norm, weight = started
        assert started[norm] is llama.state[norm]
        # The penalty is D / tokens of the inputs' own size, so it shrinks the map by that share.
        torch.testing.assert_close(started[weight], weight_DD, rtol=0, atol=0.02)
        assert nmse(x_ND @ started[weight].T, y_ND) < 1e-5

    def test_no_other_matrix_has_a_lower_penalised_error(self) -> None:
        generator = torch.Generator().manual_seed(3)
        x_ND, y_ND = (torch.randn(60, 8, generator=generator, dtype=torch.float64) for _ in range(2))
        weight_DD = ridge(x_ND.T @ x_ND, x_ND.T @ y_ND, 60)
        penalty = x_ND.pow(2).sum() / 60

        def error(candidate_DD: torch.Tensor) -> torch.Tensor:
            return (x_ND @ candidate_DD.T - y_ND).pow(2).sum() + penalty * candidate_DD.pow(2).sum()

        variable_DD = weight_DD.clone().requires_grad_()
        error(variable_DD).backward()
        assert variable_DD.grad is not None
        assert variable_DD.grad.abs().max() < 1e-10

    def test_fewer_tokens_than_dimensions(self) -> None:
        x_ND = torch.randn(3, 32, generator=torch.Generator().manual_seed(4))
        assert ridge(x_ND.T @ x_ND, x_ND.T @ x_ND, 3).isfinite().all()

    def test_products_of_attention_are_a_token_alone(self, case) -> None:
        """With one token attention is W_o W_v of it, biases aside."""
        shape = case.parent.shape
        state = {name: torch.zeros_like(t) if name.endswith(".bias") else t for name, t in case.state.items()}
        started = linear_from_products(Place(shape, 1, "attention"), state)
        full = built(case, "attention", shape.parent_entry(1, "attention"), own_attention(shape, state))
        token_11D = case.hidden_BSD[:1, :1]
        cos, sin = case.context.position_embeddings
        one = replace(
            case.context, position_embeddings=(cos[:, :1], sin[:, :1]), masks=dict.fromkeys(case.context.masks)
        )
        linear = built(case, "attention", {"kind": "linear"}, started)
        tolerance = 0.05 if shape.dtype == "bfloat16" else 1e-4
        torch.testing.assert_close(
            linear.attention_update(token_11D, one),
            full.attention_update(token_11D, one),
            rtol=tolerance,
            atol=tolerance,
        )

    def test_products_of_the_ffn(self, llama) -> None:
        started = linear_from_products(Place(llama.parent.shape, 1, "ffn"), llama.state)
        torch.testing.assert_close(started["mlp.weight"], llama.state[DOWN] @ llama.state[UP])


def own_heads(shape) -> int:
    return shape.parent_entry(1, "attention")["kv_heads"]


def own_attention(shape, state):
    return Variant("attention", "parent").start(shape, 1, state)


def own_ffn(shape, state):
    return Variant("ffn", "parent").start(shape, 1, state)


def nmse(update_ND: torch.Tensor, parent_update_ND: torch.Tensor) -> float:
    return float((update_ND - parent_update_ND).pow(2).mean() / parent_update_ND.pow(2).mean())
