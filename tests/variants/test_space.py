"""From a job's space to the variants of each layer, and what a parent cannot take."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from inlay.nas.errors import UserError
from inlay.nas.families import Shape
from inlay.nas.job import Space
from inlay.nas.modeling.window_inlay import parent_attention
from inlay.nas.variants import Variant, parse_variant, space_problems, unseen_problems, variants_of

FFN = {"kind": "gated", "width": 172}
SHAPE = Shape(
    family="qwen3",
    hidden=64,
    q_heads=8,
    head_dim=16,
    vocab=512,
    tied=True,
    qkv_bias=False,
    o_bias=False,
    qk_norm=True,
    mlp_bias=False,
    dtype="bfloat16",
    rotation="default",
    max_positions=512,
    blocks=tuple({"attention": parent_attention(4, window), "ffn": FFN} for window in (None, 64, None)),
)


def like(blocks: Any) -> Shape:
    """The same parent with other layers."""
    return replace(SHAPE, blocks=blocks)


def labels(space: Space, shape: Shape = SHAPE, layer: int = 0) -> list[str]:
    return [variant.label for variant in variants_of(space, shape, layer)]


def problems(shape: Shape = SHAPE, **space: object) -> list[str]:
    return [str(problem) for problem in space_problems(Space.model_validate(space), shape)]


def test_the_parent_comes_first_and_the_order_is_the_jobs() -> None:
    space = Space(attention=[{"kv_heads": 1}, "no_op", {"window": 128}, "linear"], ffn=[{"width": 0.5}, "no_op"])
    assert labels(space) == [
        "attention:parent",
        "attention:kv_heads=1",
        "attention:no_op",
        "attention:window=128",
        "attention:linear",
        "ffn:parent",
        "ffn:width=88",
        "ffn:no_op",
    ]


def test_each_alternative_is_there_in_each_format() -> None:
    space = Space(attention=["no_op"], ffn=[{"width": 0.5}], multiple=64, formats=["q8_0", "q4_0"])
    assert labels(space) == [
        *("attention:parent", "attention:parent@q8_0", "attention:parent@q4_0", "attention:no_op"),
        *("ffn:parent", "ffn:parent@q8_0", "ffn:parent@q4_0"),
        *("ffn:width=64", "ffn:width=64@q8_0", "ffn:width=64@q4_0"),
    ]
    entry = parse_variant("ffn:width=64@q4_0").entry(SHAPE, 0)
    assert entry == {"kind": "gated", "width": 64, "format": "q4_0"}


def test_a_format_is_offered_where_some_row_is_whole_blocks() -> None:
    wide = like([{"attention": parent_attention(4, None), "ffn": {"kind": "gated", "width": 512}}] * 2)
    assert labels(Space(ffn=[{"width": 64}], formats=["q4_K"]), wide) == [
        "attention:parent",
        *("ffn:parent", "ffn:parent@q4_K", "ffn:width=64"),
    ]
    assert problems(formats=["q8_0", "q4_K"]) == [
        "space.formats[1]: attention:parent@q4_K is not possible: q4_K stores 256 numbers together, and its rows have "
        "64 and 128; take q5_0"
    ]
    with pytest.raises(UserError, match=r"solution: ffn:parent@q6_K is not possible: .* have 64 and 172; take f16"):
        parse_variant("ffn:parent@q6_K").check(SHAPE, 0, "solution")


@pytest.mark.parametrize(
    ("width", "multiple", "expected"),
    [
        *[(0.75, 8, 128), (0.5, 8, 88), (0.25, 8, 40), (0.01, 8, 8), (0.5, 1, 86), (0.5, 64, 64)],
        *[(101, 8, 104), (99, 8, 96), (100, 1, 100), (3, 8, 8), (171, 8, 168), (0.999, 8, 168), (2, 64, 64)],
    ],
)
def test_numbers_and_fractions_are_rounded_to_the_multiple(width, multiple, expected) -> None:
    space = Space(ffn=[{"width": width}], multiple=multiple)
    assert labels(space)[2:] == [f"ffn:width={expected}"]


def test_what_comes_out_the_same_is_there_once() -> None:
    assert labels(Space(ffn=[{"width": 0.5}, {"width": 88}, {"width": 0.51}, {"width": 86}])) == [
        "attention:parent",
        "ffn:parent",
        "ffn:width=88",
    ]


def test_a_fraction_is_of_each_layers_own_width() -> None:
    own = parent_attention(4, None)
    ffns = [{"kind": "gated", "width": 96}, {"kind": "gated", "width": 40}, {"kind": "no_op"}, {"kind": "linear"}]
    shape = like(tuple({"attention": own, "ffn": ffn} for ffn in ffns))
    space = Space(ffn=[{"width": 0.5}, {"width": 48}, "linear"])
    assert labels(space, shape, 0)[1:] == ["ffn:parent", "ffn:width=48", "ffn:linear"]
    assert labels(space, shape, 1)[1:] == ["ffn:parent", "ffn:width=16", "ffn:linear"]
    assert labels(space, shape, 2)[1:] == ["ffn:parent"]
    assert labels(space, shape, 3)[1:] == ["ffn:parent"]
    assert problems(shape, ffn=[{"width": 0.5}, {"width": 48}]) == []
    (problem,) = problems(like(shape.blocks[3:]), ffn=[{"width": 0.5}])
    assert problem.endswith("0 is not possible: the parent's ffn has no channels; leave width out")


def test_the_parents_own_width_is_the_parent() -> None:
    assert labels(Space(ffn=[{"width": 172}, "no_op"]))[1:] == ["ffn:parent", "ffn:no_op"]


def test_sinks_are_those_of_the_space() -> None:
    assert labels(Space(attention=[{"window": 32}], sinks=0))[1] == "attention:window=32,sinks=0"


def test_a_window_is_left_out_where_the_parent_slides_as_narrowly() -> None:
    space = Space(attention=[{"window": 64}, {"window": 32}])
    assert labels(space, layer=0)[1:3] == ["attention:window=64", "attention:window=32"]
    assert labels(space, layer=1)[1:2] == ["attention:window=32"]


def test_a_good_space_has_no_problems() -> None:
    assert problems(attention=[{"kv_heads": 2}, {"window": 512}, "linear"], ffn=[{"width": 172}, {"width": 0.9}]) == []


@pytest.mark.parametrize("heads", [3, 4, 8])
def test_heads_that_do_not_divide(heads: int) -> None:
    (problem,) = problems(attention=["no_op", {"kv_heads": heads}])
    assert problem == (
        f"space.attention[1].kv_heads: {heads} does not divide the parent's 4 key/value heads into fewer; give 1 or 2"
    )


def test_a_parent_with_one_head() -> None:
    (problem,) = problems(
        like(({"attention": parent_attention(1, None), "ffn": FFN},) * 3), attention=[{"kv_heads": 1}]
    )
    assert problem.endswith("1 is not possible: the parent has 1 key/value head; leave kv_heads out")


def test_a_width_above_the_parents() -> None:
    (problem,) = problems(ffn=[{"width": 173}])
    assert problem.startswith("space.ffn[0].width: 173 is above the parent's width of 172; give a smaller one")


def test_a_fraction_that_rounds_above_the_parents() -> None:
    (problem,) = problems(ffn=[{"width": 0.5}], multiple=256)
    assert problem.startswith("space.ffn[0].width: 0.5 gives a multiple of 256, and 256 is above the parent's width")


def test_a_number_that_rounds_above_the_parents() -> None:
    (problem,) = problems(ffn=[{"width": 100}], multiple=256)
    assert problem.startswith("space.ffn[0].width: 100 gives a multiple of 256, and 256 is above the parent's width")


def test_a_window_longer_than_the_context() -> None:
    (problem,) = problems(attention=[{"window": 513}])
    assert problem == (
        "space.attention[0].window: 513 is longer than the parent's context of 512 tokens; give at most 512"
    )


def test_a_window_that_no_layer_can_take() -> None:
    (problem,) = problems(
        like(tuple({"attention": parent_attention(4, w), "ffn": FFN} for w in (64, 64, 32))), attention=[{"window": 64}]
    )
    assert problem.endswith("64 is not smaller than the parent's own window of 64 tokens; give less than 64")


@pytest.mark.parametrize(("sinks", "window", "is_seen"), [(4, 27, True), (4, 28, False), (0, 31, True), (0, 32, False)])
def test_a_window_as_long_as_what_is_judged(sinks: int, window: int, is_seen: bool) -> None:
    """With the sinks it must leave a token out of 32: else a child of it would seem as good as the parent."""
    space = Space(attention=["linear", {"window": window}], sinks=sinks)
    assert problems(attention=[{"window": window}], sinks=sinks) == []
    found = [str(problem) for problem in unseen_problems(space, SHAPE, 32, "some.field")]
    expected = (
        f"space.attention[1].window: {window} and {sinks} sinks hide nothing of the sequences of 32 tokens that "
        f"quality is judged on, so that what it loses would not be seen; give less than {32 - sinks}, "
        "or raise some.field"
    )
    assert found == ([] if is_seen else [expected])


def test_every_problem_is_listed_and_variants_of_raises_them_all() -> None:
    space = Space(attention=[{"kv_heads": 3}, {"window": 600}], ffn=[{"width": 500}])
    found = [str(problem) for problem in space_problems(space, SHAPE)]
    assert len(found) == 3
    with pytest.raises(UserError) as caught:
        variants_of(space, SHAPE, 0)
    assert str(caught.value).splitlines() == found


def test_items_that_are_no_alternatives_are_problems_too() -> None:
    from types import SimpleNamespace

    space = SimpleNamespace(
        attention=["lineal", {"width": 8}],
        ffn=[],
        layers=[],
        forms=(),
        stored_as=lambda layer, slot: (),
        multiple=8,
        sinks=4,
    )
    first, second = map(str, space_problems(space, SHAPE))
    assert first.startswith("space.attention[0]: 'lineal' is no attention alternative; did you mean `linear`?")
    assert second.startswith("space.attention[1]: {'width': 8} is no attention alternative; ")


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        ("ffn:width=0", "0 is not a width; give at least 1, or no_op for no ffn"),
        ("attention:kv_heads=0", "0 does not divide the parent's 4 key/value heads into fewer"),
        ("attention:window=0", "0 is not a window; give at least 1 token, or no_op for no attention"),
    ],
)
def test_check_raises_with_its_field(label: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_variant(label).check(SHAPE, 0, "architecture.layers[0]")
    assert str(caught.value).startswith(f"architecture.layers[0]: {sentence}")
    Variant("ffn", "no_op").check(SHAPE, 0, "anything")


def test_importing_variants_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, inlay.nas.variants; assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
