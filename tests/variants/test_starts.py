"""The training-free starts against what they should compute."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import logsigmoid, silu

from inlay.nas.modeling import build_layer
from inlay.nas.modeling.full_inlay import KEY, OUTPUT, VALUE
from inlay.nas.modeling.gla_modules_inlay import TEMPERATURE
from inlay.nas.variants import Place, Variant
from inlay.nas.variants.gla import HALF_LIVES, Mixing, mixing_errors
from inlay.nas.variants.kv_heads import MergedHeads
from inlay.nas.variants.least_squares import least_missed, refitted
from inlay.nas.variants.linear import linear_from_products, ridge
from inlay.nas.variants.merging import least_damage
from inlay.nas.variants.statistics import ChannelGram, Inputs, Sums, gather

GATE, UP, DOWN = (f"mlp.{name}_proj.weight" for name in ("gate", "up", "down"))


def built(case, slot, entry, state):
    entries = {"attention": None, "ffn": None} | {slot: entry}
    dtype = getattr(torch, case.parent.shape.dtype)
    return build_layer(case.parent.config, 1, entries["attention"], entries["ffn"], state, dtype)


class TestKvHeads:
    def test_as_many_as_the_parent_is_the_parent(self, case) -> None:
        shape = case.parent.shape
        started = Variant("attention", "kv_heads", own_heads(shape)).start(shape, 1, case.state, case.sums)
        own = Variant("attention", "parent").start(shape, 1, case.state)
        assert started.keys() == own.keys()
        assert all(started[name].equal(own[name]) for name in own)

    def test_equal_heads_lose_nothing(self, case) -> None:
        """Weights and biases: with all heads alike, one gives the same update."""
        shape, state = case.parent.shape, dict(case.state)
        for name in [name for name in state if name.startswith((KEY, VALUE))]:
            state[name] = torch.cat([state[name][: shape.head_dim]] * own_heads(shape))
        expect_the_same(case, state, state | attention_start(case, state, 1), 1)

    def test_keys_that_differ_by_a_turn_and_values_by_a_map_lose_nothing(self, case) -> None:
        """What one head can hold: a factor and a turn a frequency in keys, any map of values, biases included."""
        shape, size = case.parent.shape, case.parent.shape.head_dim
        generator, state = torch.Generator().manual_seed(7), dict(case.state)
        factor_F = torch.complex(*torch.randn(2, size // 2, generator=generator)) * 0.7
        maps = {VALUE: torch.randn(size, size, generator=generator) / size**0.5}
        if not shape.qk_norm:
            turn_FF = torch.diag(factor_F)
            maps[KEY] = torch.cat(
                [torch.cat([turn_FF.real, -turn_FF.imag], dim=1), torch.cat([turn_FF.imag, turn_FF.real], dim=1)]
            )
        for name in [name for name in state if name.startswith((KEY, VALUE))]:
            first = state[name][:size].float()
            others = [maps[kind] @ first if kind in maps else first for kind in [name.rpartition(".")[0]]]
            state[name] = torch.cat([first, *others * (own_heads(shape) - 1)]).to(state[name].dtype)
        expect_the_same(case, state, state | attention_start(case, state, 1), 1)

    def test_heads_that_are_alike_are_merged_though_others_stand_between(self, case) -> None:
        """Heads 0 and 2 are alike, and 1 and 3: merging them two by two loses nothing."""
        parent = four_heads(case.parent)
        generator, state = torch.Generator().manual_seed(8), dict(case.state)
        for name in [name for name in state if name.startswith((KEY, VALUE))]:
            pair = torch.randn(2 * parent.shape.head_dim, *state[name].shape[1:], generator=generator) / 8
            state[name] = torch.cat([pair, pair]).to(state[name].dtype)
        four = replace(case, parent=parent)
        expect_the_same(four, state, state | attention_start(four, state, 2), 2)

    def test_no_other_shared_values_keep_more(self, llama) -> None:
        """Against the best of one head's rank, written out: what the first singular values of all readers leave."""
        shape, size = llama.parent.shape, llama.parent.shape.head_dim
        started = MergedHeads(Place(shape, 1, "attention"), 1).ready(llama.state, llama.sums).started
        heads = shape.q_heads // own_heads(shape)
        moments_DD = llama.sums.of(Inputs("attention"))["xx"].double() / llama.sums.tokens
        root_DD = torch.linalg.cholesky(moments_DD)

        def readings(state, queries: int) -> torch.Tensor:
            value_GKD = state[f"{VALUE}.weight"].double().view(-1, size, shape.hidden).repeat_interleave(queries, dim=0)
            output_HDK = state[f"{OUTPUT}.weight"].double().view(shape.hidden, -1, size).permute(1, 0, 2)
            return (output_HDK @ value_GKD).flatten(0, 1) @ root_DD

        parents, shared = readings(llama.state, heads), readings(started, shape.q_heads)
        least = torch.linalg.svdvals(parents)[size:].square().sum()
        torch.testing.assert_close((parents - shared).square().sum(), least, rtol=1e-4, atol=0)

    def test_the_output_projection_is_the_least_squares_of_the_sums(self, case) -> None:
        """Against the normal equations of what merged heads really give, and against merged heads alone."""
        shape, variant = case.parent.shape, Variant("attention", "kv_heads", 1)
        merged = MergedHeads(Place(shape, 1, "attention"), 1).ready(case.state, case.sums).started
        started = variant.start(shape, 1, case.state, case.sums)
        given: dict[str, torch.Tensor] = {}
        alone = built(case, "attention", variant.entry(shape, 1), merged)
        alone.self_attn.o_proj.register_forward_pre_hook(lambda _, inputs: given.update(z=inputs[0]))
        alone.attention_update(case.hidden_BSD, case.context)
        z_NO = given["z"].flatten(0, 1).double()
        target_ND = case.layer.attention_update(case.hidden_BSD, case.context).flatten(0, 1).double()
        if shape.o_bias:
            target_ND = target_ND - case.state[f"{OUTPUT}.bias"].double()
        before_DO = merged[f"{OUTPUT}.weight"].double()
        penalty = z_NO.square().sum() / len(z_NO)
        system_OO = z_NO.T @ z_NO + penalty * torch.eye(z_NO.shape[1], dtype=torch.float64)
        expected_DO = torch.linalg.solve(system_OO, z_NO.T @ target_ND + penalty * before_DO.T).T
        tolerance = 0.02 if shape.dtype == "bfloat16" else 1e-4
        found_DO = started[f"{OUTPUT}.weight"].double()
        torch.testing.assert_close(found_DO, expected_DO, rtol=tolerance, atol=tolerance)
        assert nmse(z_NO @ found_DO.T, target_ND) < nmse(z_NO @ before_DO.T, target_ND)
        others = [name for name in started if name != f"{OUTPUT}.weight"]
        assert all(started[name].equal(merged[name]) for name in others)

    def test_groups_are_those_of_the_least_damage(self) -> None:
        """Against all ways to make three groups of two of six heads."""
        generator = torch.Generator().manual_seed(9)
        half_GG = torch.rand(6, 6, generator=generator)
        damage_GG = (half_GG + half_GG.T).tolist()

        def damage(groups) -> float:
            return sum(damage_GG[a][b] for a, b in groups)

        ways = {
            tuple(sorted(tuple(sorted(order[first : first + 2])) for first in (0, 2, 4)))
            for order in itertools.permutations(range(6))
        }
        assert len(ways) == 15
        found = least_damage(damage_GG, 3)
        swapped = [
            way
            for way in ways
            if len({tuple(g) for g in found} & set(way)) == 1  # two groups differ: one swap
        ]
        assert damage(found) <= min(map(damage, swapped))
        assert damage(found) < damage([(0, 1), (2, 3), (4, 5)])

    def test_norms_are_the_parents(self, case) -> None:
        started = attention_start(case, case.state, 1)
        norms = [name for name in started if "norm" in name]
        assert len(norms) == (3 if case.parent.shape.qk_norm else 1)
        assert all(started[name] is case.state[name] for name in norms)

    def test_it_says_which_sums_it_needs(self, case) -> None:
        with pytest.raises(ValueError, match=r"there are no sums `attention.inputs`; run calibrate with them."):
            Variant("attention", "kv_heads", 1).start(case.parent.shape, 1, case.state, Sums())


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
    def test_gate_and_up_are_the_parents_rows(self, case) -> None:
        shape, variant = case.parent.shape, Variant("ffn", "width", 16)
        kept = channels_kept(case, case.state, case.sums, 16)
        started = variant.start(shape, 1, case.state, case.sums)
        assert started[GATE].equal(case.state[GATE][kept])
        assert started[UP].equal(case.state[UP][kept])
        normed_BSD = case.layer.post_attention_layernorm(case.hidden_BSD)
        channels_BSF = silu(normed_BSD @ started[GATE].T) * (normed_BSD @ started[UP].T)
        narrow = built(case, "ffn", variant.entry(shape, 1), started)
        torch.testing.assert_close(narrow.ffn_update(case.hidden_BSD), channels_BSF @ started[DOWN].T)

    def test_no_other_down_projection_has_a_lower_penalised_error(self) -> None:
        generator = torch.Generator().manual_seed(5)
        channels_NF = torch.randn(60, 12, generator=generator, dtype=torch.float64)
        down_DF = torch.randn(5, 12, generator=generator, dtype=torch.float64)
        kept = torch.tensor([1, 4, 5, 9])
        columns_DK = refitted(down_DF, channels_NF.T @ channels_NF, kept, 60)
        penalty = channels_NF[:, kept].pow(2).sum() / 60

        def error(candidate_DK: torch.Tensor) -> torch.Tensor:
            off_ND = channels_NF[:, kept] @ candidate_DK.T - channels_NF @ down_DF.T
            return off_ND.pow(2).sum() + penalty * (candidate_DK - down_DF[:, kept]).pow(2).sum()

        variable_DK = columns_DK.clone().requires_grad_()
        error(variable_DK).backward()
        assert variable_DK.grad is not None
        assert variable_DK.grad.abs().max() < 1e-9
        assert error(columns_DK) < error(down_DF[:, kept])

    def test_it_is_not_worse_than_the_plain_cut_on_the_text_of_its_sums(self, case) -> None:
        shape, variant = case.parent.shape, Variant("ffn", "width", 16)
        started = variant.start(shape, 1, case.state, case.sums)
        kept = channels_kept(case, case.state, case.sums, 16)
        middle_BSD = case.hidden_BSD + case.layer.attention_update(case.hidden_BSD, case.context)
        own_BSD = case.layer.ffn_update(middle_BSD).float()
        fitted, cut = (
            built(case, "ffn", variant.entry(shape, 1), state).ffn_update(middle_BSD).float()
            for state in (started, started | {DOWN: case.state[DOWN][:, kept]})
        )
        assert nmse(fitted, own_BSD) < nmse(cut, own_BSD)

    def test_channels_that_repeat_others_lose_nothing(self) -> None:
        """Every channel that goes is twice one that stays: with many tokens the fit finds that."""
        generator = torch.Generator().manual_seed(6)
        half_NF = torch.randn(100_000, 4, generator=generator, dtype=torch.float64)
        channels_NF = torch.cat([half_NF, 2 * half_NF], dim=1)
        down_DF = torch.randn(3, 8, generator=generator, dtype=torch.float64)
        columns_DK = refitted(down_DF, channels_NF.T @ channels_NF, torch.arange(4), 100_000)
        torch.testing.assert_close(columns_DK, down_DF[:, :4] + 2 * down_DF[:, 4:], rtol=0, atol=1e-3)

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
        rows_NF = channels_BSF.flatten(0, 1)
        tensors = {**llama.sums.tensors, "ffn.gram.hh": rows_NF.T @ rows_NF}
        sums = replace(llama.sums, tensors=tensors)
        kept = channels_kept(llama, state, sums, 42)
        assert set(range(48)) - set(kept.tolist()) == {*silent, *ignored}
        variant = Variant("ffn", "width", 42)
        narrow = built(llama, "ffn", variant.entry(shape, 1), variant.start(shape, 1, state, sums))
        torch.testing.assert_close(narrow.ffn_update(llama.hidden_BSD), full.ffn_update(llama.hidden_BSD))

    def test_the_channel_that_goes_is_the_one_whose_loss_the_others_make_up_for_best(self) -> None:
        """Against the refit without each channel in turn, written out; as long as one goes at a time, at every step."""
        generator = torch.Generator().manual_seed(11)
        mixed_NF = torch.randn(400, 9, generator=generator) @ torch.randn(9, 9, generator=generator)
        channels_NF, down_DF = mixed_NF.double(), torch.randn(3, 9, generator=generator, dtype=torch.float64)
        gram_FF, tokens = channels_NF.T @ channels_NF, 10**9
        left = list(range(9))
        while len(left) > 3:

            def missed(gone: int, left: list[int] = left) -> float:
                others = [channel for channel in left if channel != gone]
                fit = torch.linalg.lstsq(channels_NF[:, others], channels_NF @ down_DF.T).solution
                return float((channels_NF[:, others] @ fit - channels_NF @ down_DF.T).square().sum())

            left.remove(min(left, key=missed))
            assert least_missed(down_DF, gram_FF, len(left), tokens).tolist() == left

    def test_many_go_at_a_time_where_there_are_many(self) -> None:
        """Of 600 channels that repeat 300, in pairs, one of each pair stays: nothing is lost."""
        generator = torch.Generator().manual_seed(12)
        half_NF = torch.randn(2_000, 300, generator=generator, dtype=torch.float64)
        channels_NF = torch.cat([half_NF, half_NF], dim=1)
        down_DF = torch.randn(4, 600, generator=generator, dtype=torch.float64)
        kept = least_missed(down_DF, channels_NF.T @ channels_NF, 300, 10**6)
        assert sorted(channel % 300 for channel in kept.tolist()) == list(range(300))


class TestAlone:
    def test_it_is_the_least_squares_of_the_layers_update(self, case) -> None:
        """With all channels, against the normal equations written out; and better than the parent's ffn left alone."""
        shape = case.parent.shape
        started = Variant("ffn", "alone", 48).start(shape, 1, case.state, case.sums)
        mlp, normed_BSD = case.layer.mlp, case.layer.post_attention_layernorm(case.hidden_BSD)
        channels_NF = (mlp.act_fn(mlp.gate_proj(normed_BSD)) * mlp.up_proj(normed_BSD)).flatten(0, 1).double()
        update_ND = (case.layer(case.hidden_BSD, case.context) - case.hidden_BSD).flatten(0, 1).double()
        own_DF, found_DF = case.state[DOWN].double(), started[DOWN].double()
        penalty = channels_NF.square().sum() / len(channels_NF)
        system_FF = channels_NF.T @ channels_NF + penalty * torch.eye(48, dtype=torch.float64)
        expected_DF = torch.linalg.solve(system_FF, channels_NF.T @ update_ND + penalty * own_DF.T).T
        tolerance = 0.02 if shape.dtype == "bfloat16" else 1e-4
        torch.testing.assert_close(found_DF, expected_DF, rtol=tolerance, atol=tolerance)
        assert nmse(channels_NF @ found_DF.T, update_ND) < nmse(channels_NF @ own_DF.T, update_ND)
        assert started[GATE].equal(case.state[GATE])

    def test_fewer_channels_are_those_that_the_fit_needs(self, case) -> None:
        """The parent's gates, fitted for themselves: better than the columns of the fit of all."""
        shape = case.parent.shape
        every = Variant("ffn", "alone", 48).start(shape, 1, case.state, case.sums)
        started = Variant("ffn", "alone", 24).start(shape, 1, case.state, case.sums)
        kept = [int((case.state[GATE] == row).all(dim=1).nonzero()[0, 0]) for row in started[GATE]]
        assert kept == sorted(set(kept))
        assert started[UP].equal(case.state[UP][kept])
        update_ND = (case.layer(case.hidden_BSD, case.context) - case.hidden_BSD).float()
        variant = Variant("ffn", "alone", 24)
        fitted, cut = (
            built(case, "ffn", variant.entry(shape, 1), state).ffn_update(case.hidden_BSD).float()
            for state in (started, started | {DOWN: every[DOWN][:, kept]})
        )
        assert nmse(fitted, update_ND) < nmse(cut, update_ND)

    def test_a_layer_without_attention_has_nothing_to_make_up_for(self, llama) -> None:
        blocks = [dict(block) | {"attention": {"kind": "no_op"}} for block in llama.parent.shape.blocks]
        problem = Variant("ffn", "alone", 24).problem(replace(llama.parent.shape, blocks=tuple(blocks)), 1)
        assert problem == "24 is not possible: the parent has no attention there to make up for; give width"


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


class TestGla:
    def test_heads_fade_as_their_softmax_does(self) -> None:
        """Even attention to all before fades last, and even attention to the last four tokens in about two."""
        even_1HSK = torch.full((1, 4, 64, 8), 0.01)
        to_all, to_four = (mixing_errors(even_1HSK, even_1HSK[:, :2], 1.0, window) for window in (None, (4, 0)))
        assert to_all.shape == (2, len(HALF_LIVES))
        assert [HALF_LIVES[best] for best in to_all.argmin(dim=-1)] == [HALF_LIVES[-1]] * 2
        assert [HALF_LIVES[best] for best in to_four.argmin(dim=-1)] == [2.0, 2.0]
        assert to_four.min() < 0.3 * to_four[:, -1].min()

    def test_sinks_are_seen_wherever_they_are(self) -> None:
        """With them a window is nearer to attention that never fades."""
        even_1HSK = torch.full((1, 1, 64, 8), 0.01)
        without, beside = (mixing_errors(even_1HSK, even_1HSK, 1.0, window) for window in ((4, 0), (4, 16)))
        assert beside[0, -1] < without[0, -1]

    def test_gates_begin_at_the_half_life_and_the_output_is_fitted(self, case) -> None:
        """Against the parent's own output projection behind the same states."""
        shape, variant = case.parent.shape, Variant("attention", "gla")
        started = variant.start(shape, 1, case.state, case.sums)
        best_G = case.sums.of(Mixing(Place(shape, 1, "attention")))["errors"].argmin(dim=-1)
        bias_GK = started["self_attn.gate_up.bias"].double().unflatten(0, (len(best_G), -1))
        kept = logsigmoid(bias_GK) / TEMPERATURE
        half_lives = torch.tensor([HALF_LIVES[best] for best in best_G], dtype=torch.float64)
        expected = (-torch.tensor(2.0).log() / half_lives)[:, None].expand_as(kept)
        tolerance = 0.03 if shape.dtype == "bfloat16" else 1e-4
        torch.testing.assert_close(kept, expected, rtol=tolerance, atol=1e-6)
        weight = f"{OUTPUT}.weight"
        parent, fitted, own = (
            built(case, "attention", entry, state).attention_update(case.hidden_BSD, case.context).float()
            for entry, state in (
                (shape.parent_entry(1, "attention"), own_attention(shape, case.state)),
                (variant.entry(shape, 1), started),
                (variant.entry(shape, 1), started | {weight: case.state[weight]}),
            )
        )
        assert nmse(fitted, parent) < min(1.0, nmse(own, parent))


def attention_start(case, state, heads: int):
    """The start with `heads` KV heads, from sums that are taken of this attention."""
    shape = case.parent.shape
    layer = built(case, "attention", shape.parent_entry(1, "attention"), own_attention(shape, state))
    sums, _ = gather(layer, case.hidden_BSD, case.context, [Inputs("attention")])
    sums |= case.merged_sums(layer, state, sums, heads)
    return Variant("attention", "kv_heads", heads).start(shape, 1, state, sums)


def expect_the_same(case, state, started, heads: int) -> None:
    """The update of `started` is that of the attention `state`, which differs from a mean of neighbours."""
    shape, variant = case.parent.shape, Variant("attention", "kv_heads", heads)
    names = own_attention(shape, state).keys()
    full = built(case, "attention", shape.parent_entry(1, "attention"), own_attention(shape, state))
    fewer = built(case, "attention", variant.entry(shape, 1), {name: started[name] for name in names})
    tolerance = 0.06 if shape.dtype == "bfloat16" else 1e-4
    torch.testing.assert_close(
        fewer.attention_update(case.hidden_BSD, case.context),
        full.attention_update(case.hidden_BSD, case.context),
        rtol=tolerance,
        atol=tolerance,
    )


def four_heads(parent):
    """The parent with four KV heads, one a query head, in every layer."""
    blocks = [dict(block) | {"attention": block["attention"] | {"kv_heads": 4}} for block in parent.shape.blocks]
    shape = replace(parent.shape, blocks=tuple(blocks))
    return SimpleNamespace(config=parent.config.with_blocks(blocks), shape=shape)


def channels_kept(case, state, sums, width: int) -> torch.Tensor:
    return least_missed(state[DOWN], sums.of(ChannelGram())["hh"], width, sums.tokens)


def own_heads(shape) -> int:
    return shape.parent_entry(1, "attention")["kv_heads"]


def own_attention(shape, state):
    return Variant("attention", "parent").start(shape, 1, state)


def own_ffn(shape, state):
    return Variant("ffn", "parent").start(shape, 1, state)


def nmse(update_ND: torch.Tensor, parent_update_ND: torch.Tensor) -> float:
    return float((update_ND - parent_update_ND).pow(2).mean() / parent_update_ND.pow(2).mean())
