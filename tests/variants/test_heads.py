"""`heads` and two kinds in one slot: what their starts are, against what they should compute."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inlay.nas.errors import UserError
from inlay.nas.job import Space
from inlay.nas.modeling import build_layer, make_context
from inlay.nas.modeling.full_inlay import KEY, OUTPUT, QUERY, VALUE
from inlay.nas.variants import Variant, parse_variant, space_problems, unseen_problems, variants_of
from inlay.nas.variants.heads import HEAD_GRAM
from inlay.nas.variants.least_squares import least_missed
from inlay.nas.variants.statistics import Sums, gather


def built(case: Any, variant: Variant, state: Any) -> Any:
    return build_layer(
        case.parent.config, 1, variant.entry(case.parent.shape, 1), None, state, getattr(torch, case.parent.shape.dtype)
    )


def own(case: Any, state: Any) -> Any:
    return Variant("attention", "parent").start(case.parent.shape, 1, state)


def gram(case: Any, state: Any) -> Sums:
    """What heads give together, of an attention with other weights than the case's."""
    layer = build_layer(
        case.parent.config,
        1,
        case.parent.shape.parent_entry(1, "attention"),
        None,
        own(case, state),
        getattr(torch, case.parent.shape.dtype),
    )
    return gather(layer, case.hidden_BSD, case.context, [HEAD_GRAM])[0]


def reads(layer: Any, case: Any, context: Any = None) -> torch.Tensor:
    """What its output projection is given, [N, O]."""
    given: list[torch.Tensor] = []
    layer.self_attn.o_proj.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    layer.attention_update(case.hidden_BSD, case.context if context is None else context)
    return given[0].flatten(0, 1)


class TestHeads:
    def test_heads_that_nobody_reads_go_and_nothing_is_lost(self, case: Any) -> None:
        """In every family; whichever of the two groups it is."""
        shape, size = case.parent.shape, case.parent.shape.head_dim
        for silent in (0, 1):
            state = dict(case.state)
            columns = torch.arange(2 * size) + 2 * size * silent
            state[f"{OUTPUT}.weight"] = state[f"{OUTPUT}.weight"].index_fill(1, columns, 0)
            variant = Variant("attention", "heads", 2)
            started = variant.start(shape, 1, state, gram(case, state))
            full = built(case, Variant("attention", "parent"), own(case, state))
            tolerance = 0.06 if shape.dtype == "bfloat16" else 1e-4
            torch.testing.assert_close(
                built(case, variant, started).attention_update(case.hidden_BSD, case.context),
                full.attention_update(case.hidden_BSD, case.context),
                rtol=tolerance,
                atol=tolerance,
            )

    def test_those_that_stay_compute_what_they_did(self, case: Any) -> None:
        shape, size = case.parent.shape, case.parent.shape.head_dim
        variant = Variant("attention", "heads", 2)
        started = variant.start(shape, 1, case.state, case.sums)
        kept = least_missed(
            case.state[f"{OUTPUT}.weight"], case.sums.of(HEAD_GRAM)["hh"], 2 * size, case.sums.tokens, 2 * size
        )
        first = int(kept[0])
        assert kept.tolist() == list(range(first, first + 2 * size))
        assert first in (0, 2 * size)
        parents = reads(built(case, Variant("attention", "parent"), own(case, case.state)), case)[:, kept]
        tolerance = 0.02 if shape.dtype == "bfloat16" else 1e-5
        torch.testing.assert_close(reads(built(case, variant, started), case), parents, rtol=tolerance, atol=tolerance)
        for name, tensor in started.items():
            rows = {QUERY: kept, KEY: kept[:size] // 2 - kept[0] // 2, VALUE: kept[:size]}.get(name.rpartition(".")[0])
            assert len(tensor) == (len(rows) if rows is not None else len(case.state[name]))

    def test_the_output_projection_is_the_least_squares_of_what_is_left(self, case: Any) -> None:
        """Against the normal equations of what the kept heads really give, and better than the plain cut."""
        shape, variant = case.parent.shape, Variant("attention", "heads", 2)
        started = variant.start(shape, 1, case.state, case.sums)
        own_DO = case.state[f"{OUTPUT}.weight"].double()
        kept = least_missed(own_DO, case.sums.of(HEAD_GRAM)["hh"], started[f"{OUTPUT}.weight"].shape[1],
                            case.sums.tokens, 2 * shape.head_dim)  # fmt: skip
        every_NO = reads(built(case, Variant("attention", "parent"), own(case, case.state)), case).double()
        z_NK, target_ND = every_NO[:, kept], every_NO @ own_DO.T
        penalty = z_NK.square().sum() / len(z_NK)
        system_KK = z_NK.T @ z_NK + penalty * torch.eye(len(kept), dtype=torch.float64)
        expected_DK = torch.linalg.solve(system_KK, z_NK.T @ target_ND + penalty * own_DO[:, kept].T).T
        tolerance = 0.02 if shape.dtype == "bfloat16" else 1e-4
        found_DK = started[f"{OUTPUT}.weight"].double()
        torch.testing.assert_close(found_DK, expected_DK, rtol=tolerance, atol=tolerance)
        off, cut_off = ((z_NK @ columns_DK.T - target_ND).square().sum() for columns_DK in (found_DK, own_DO[:, kept]))
        assert off < cut_off

    def test_the_group_that_goes_is_the_one_whose_loss_the_others_make_up_for_best(self) -> None:
        """Against the refit without each group in turn, written out, at every step."""
        generator = torch.Generator().manual_seed(3)
        mixed_NO = (torch.randn(400, 12, generator=generator) @ torch.randn(12, 12, generator=generator)).double()
        weight_DO = torch.randn(5, 12, generator=generator, dtype=torch.float64)
        left = list(range(4))
        while len(left) > 1:

            def missed(gone: int, left: list[int] = left) -> float:
                others = [3 * group + number for group in left if group != gone for number in range(3)]
                fit = torch.linalg.lstsq(mixed_NO[:, others], mixed_NO @ weight_DO.T).solution
                return float((mixed_NO[:, others] @ fit - mixed_NO @ weight_DO.T).square().sum())

            left.remove(min(left, key=missed))
            kept = least_missed(weight_DO, mixed_NO.T @ mixed_NO, 3 * len(left), 10**9, 3)
            assert kept.tolist() == [3 * group + number for group in left for number in range(3)]

    def test_a_parent_that_has_fewer_already(self, llama: Any) -> None:
        """Groups are as large as before, and what is merged then are the KV heads that are left."""
        blocks = [dict(block) | {"attention": {"kind": "full", "kv_heads": 4}} for block in llama.parent.shape.blocks]
        shape = replace(llama.parent.shape, blocks=tuple(blocks))
        entry = Variant("attention", "heads", 2).entry(shape, 1)
        assert entry == {"kind": "full", "heads": 2, "kv_heads": 2}
        again = replace(shape, blocks=tuple(block | {"attention": entry} for block in blocks))
        assert Variant("attention", "heads", 1).entry(again, 1) == {"kind": "full", "heads": 1, "kv_heads": 1}
        assert Variant("attention", "kv_heads", 1).entry(again, 1) == {"kind": "full", "heads": 2, "kv_heads": 1}
        assert Variant("attention", "window", (8, 4)).entry(again, 1)["heads"] == 2

    @pytest.mark.parametrize(
        ("kv_heads", "heads", "sentence"),
        [
            (2, 3, "3 is not possible: the parent has 4 heads, 2 to a key/value head; give a multiple of 2 below 4"),
            (2, 4, "4 is not possible: the parent has 4 heads, 2 to a key/value head; give a multiple of 2 below 4"),
            (4, 5, "5 is not possible: the parent has 4 heads, 1 to a key/value head; give a number below 4"),
            (1, 2, "2 is not possible: all heads of the parent read its 1 key/value head; leave heads out"),
        ],
    )
    def test_heads_that_cannot_go(self, llama: Any, kv_heads: int, heads: int, sentence: str) -> None:
        own = {"attention": {"kind": "full", "kv_heads": kv_heads}, "ffn": {"kind": "gated", "width": 48}}
        shape = replace(llama.parent.shape, blocks=(own,) * 2)
        (problem,) = space_problems(Space(attention=[{"heads": heads}]), shape)
        assert str(problem) == f"space.attention[0].heads: {sentence}"


class TestBoth:
    def test_it_starts_as_the_first_and_is_both(self, case: Any) -> None:
        shape = case.parent.shape
        for first, entry in (("kv_heads=1", {"kv_heads": 1}), ("heads=2", {"kv_heads": 1, "heads": 2})):
            both, alone = (parse_variant(f"attention:{name}") for name in (f"{first}+window=8", first))
            started, own = (each.start(shape, 1, case.state, case.sums) for each in (both, alone))
            assert started.keys() == own.keys()
            assert all(started[name].equal(own[name]) for name in own)
            assert both.entry(shape, 1) == {"kind": "window", "window": 8, "sinks": 4, **entry}
            assert both.statistics(shape, 1) == alone.statistics(shape, 1)

    def test_it_sees_what_the_window_shows(self, llama: Any) -> None:
        """As the first alone while nothing is hidden, and otherwise from there on."""
        shape, both = llama.parent.shape, parse_variant("attention:heads=2+window=8,sinks=0")
        started = both.start(shape, 1, llama.state, llama.sums)
        alone = parse_variant("attention:heads=2")
        entries = [both.entry(shape, 1), alone.entry(shape, 1)]
        context = make_context(llama.parent.config, 4, 32, torch.float32, "cpu", entries)
        mine, others = (
            built(llama, variant, started).attention_update(llama.hidden_BSD, context) for variant in (both, alone)
        )
        torch.testing.assert_close(mine[:, :8], others[:, :8])
        assert all((mine[:, place] - others[:, place]).abs().max() > 1e-3 for place in range(8, 32))

    def test_a_job_names_both_keys_in_any_order(self, llama: Any) -> None:
        space = Space(
            attention=[{"kv_heads": 1}, {"window": 8, "kv_heads": "1"}, {"heads": 2, "window": 8}], sinks=2, ffn=[]
        )
        assert space.attention == ({"kv_heads": 1}, {"kv_heads": 1, "window": 8}, {"heads": 2, "window": 8})
        labels = [variant.label for variant in variants_of(space, llama.parent.shape, 0)]
        assert labels == [
            "attention:parent",
            "attention:kv_heads=1",
            "attention:kv_heads=1+window=8,sinks=2",
            "attention:heads=2+window=8,sinks=2",
            "ffn:parent",
        ]
        assert [parse_variant(label).short for label in labels[1:4]] == ["kv 1", "kv 1 w8", "h 2 w8"]

    def test_what_is_wrong_with_either_is_told(self, llama: Any) -> None:
        space = Space(attention=[{"kv_heads": 3, "window": 8}, {"kv_heads": 1, "window": 65}])
        assert [str(problem) for problem in space_problems(space, llama.parent.shape)] == [
            "space.attention[0]: kv_heads 3 does not divide the parent's 2 key/value heads into fewer; give 1",
            "space.attention[1]: window 65 is longer than the parent's context of 64 tokens; give at most 64",
        ]
        unseen = unseen_problems(Space(attention=[{"heads": 2, "window": 60}]), llama.parent.shape, 64, "some.field")
        assert [str(problem) for problem in unseen] == [
            "space.attention[0]: window 60 and 4 sinks hide nothing of the sequences of 64 tokens that quality is "
            "judged on, so that what it loses would not be seen; give less than 60, or raise some.field"
        ]

    @pytest.mark.parametrize(
        ("label", "sentence"),
        [
            (
                "attention:kv_heads=1+linear",
                "kinds of attention are parent, kv_heads, heads, window, kv_heads+window, ",
            ),
            ("attention:kv_heads=1+windw=8", "did you mean `kv_heads+window`?"),
            (
                "attention:window=8+kv_heads=1",
                "heads, window, kv_heads+window, heads+window, gla, linear, no_op, merge, fuse.",
            ),
            ("attention:kv_heads=1+window=", "`window` takes a whole number, not ``"),
            ("attention:kv_heads=+window=8", "`kv_heads` takes a whole number, not ``"),
            (
                "ffn:kv_heads=1+window=8",
                "kinds of ffn are parent, width, experts, active, expert_width, ",
            ),
        ],
    )
    def test_a_label_that_is_none(self, label: str, sentence: str) -> None:
        with pytest.raises(UserError) as caught:
            parse_variant(label)
        assert sentence in str(caught.value)

    def test_they_are_sorted_by_both_numbers(self) -> None:
        labels = [f"attention:kv_heads={heads}+window={window}" for heads, window in itertools.product((1, 2), (8, 16))]
        assert sorted(labels, key=lambda label: parse_variant(label).rank) == [
            labels[3],
            labels[2],
            labels[1],
            labels[0],
        ]

    def test_two_that_do_not_stand_together(self) -> None:
        space = SimpleNamespace(
            attention=[{"kv_heads": 1, "heads": 2}], ffn=[], layers=[], forms=(), multiple=8, sinks=4
        )
        from inlay.nas.families import Shape

        own = {"attention": {"kind": "full", "kv_heads": 2}, "ffn": {"kind": "gated", "width": 8}}
        shape = Shape("llama", 32, 4, 8, 64, True, False, False, False, False, "float32", "default", 64, (own,))
        (problem,) = space_problems(space, shape)
        assert str(problem).startswith("space.attention[0]: {'kv_heads': 1, 'heads': 2} is no attention alternative; ")
