"""Labels: every variant is read back from its own, and a wrong one is told what is close."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inlay.nas.errors import UserError
from inlay.nas.variants import Variant, parse_variant

numbers = st.integers(0, 10**6)
variants = st.one_of(
    st.builds(Variant, st.sampled_from(["attention", "ffn"]), st.sampled_from(["parent", "linear", "no_op"])),
    st.builds(Variant, st.just("attention"), st.just("kv_heads"), numbers),
    st.builds(Variant, st.just("attention"), st.just("window"), st.tuples(numbers, numbers)),
    st.builds(Variant, st.just("ffn"), st.just("width"), numbers),
)


@given(variants)
def test_a_label_is_read_back(variant: Variant) -> None:
    assert parse_variant(variant.label) == variant


@given(variants, variants)
def test_labels_are_distinct(first: Variant, second: Variant) -> None:
    assert (first.label == second.label) == (first == second)


@given(st.text(max_size=30))
def test_any_other_text_is_a_user_error_or_a_variant(text: str) -> None:
    with suppress(UserError):
        variant = parse_variant(text)
        assert parse_variant(variant.label) == variant


@pytest.mark.parametrize(
    ("label", "variant"),
    [
        ("attention:kv_heads=2", Variant("attention", "kv_heads", 2)),
        ("attention:window=128", Variant("attention", "window", (128, 4))),
        ("attention:window=128,sinks=0", Variant("attention", "window", (128, 0))),
        ("ffn:width=256", Variant("ffn", "width", 256)),
        ("attention:linear", Variant("attention", "linear")),
        ("ffn:no_op", Variant("ffn", "no_op")),
        ("attention:parent", Variant("attention", "parent")),
    ],
)
def test_the_labels_of_the_docs(label: str, variant: Variant) -> None:
    assert variant.label == label
    assert parse_variant(label) == variant


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("attention:kv_head=2", "'attention:kv_head=2' is not a variant: did you mean `kv_heads`?"),
        ("ffn:kv_heads=2", "kinds of ffn are parent, width, alone, linear, no_op"),
        ("fnn:no_op", "a label is `attention:KIND` or `ffn:KIND`; did you mean `ffn`?"),
        ("nothing", "a label is `attention:KIND` or `ffn:KIND`."),
        ("ffn:width", "`width` takes a whole number, not ``"),
        ("ffn:width=", "nothing stands behind `=`"),
        ("ffn:width=0.5", "`width` takes a whole number, not `0.5`"),
        ("ffn:width=-1", "`width` takes a whole number, not `-1`"),
        ("ffn:width=٣", "`width` takes a whole number"),
        ("ffn:no_op=1", "`no_op` takes no value, not `1`"),
        ("attention:window=8,sink=0", "`window` takes `W` or `W,sinks=S`, not `8,sink=0`"),
        ("attention:window=8,sinks", "`window` takes `W` or `W,sinks=S`"),
        ("attention:window=8,sinks=x", "`sinks` takes a whole number, not `x`"),
    ],
)
def test_a_label_that_is_none(text: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_variant(text)
    assert sentence in str(caught.value)
