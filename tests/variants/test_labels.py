"""Labels: every variant is read back from its own, and a wrong one is told what is close."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inlay.nas.errors import UserError
from inlay.nas.formats import FORMATS
from inlay.nas.variants import Variant, parse_variant

numbers = st.integers(0, 10**6)
variants = st.one_of(
    st.builds(Variant, st.sampled_from(["attention", "ffn"]), st.sampled_from(["parent", "linear", "no_op"])),
    st.builds(Variant, st.just("attention"), st.just("kv_heads"), numbers),
    st.builds(Variant, st.just("attention"), st.just("window"), st.tuples(numbers, numbers)),
    st.builds(Variant, st.just("ffn"), st.just("width"), numbers),
    st.builds(Variant, st.just("ffn"), st.just("width"), numbers, st.sampled_from(list(FORMATS))),
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
        ("attention:gla", Variant("attention", "gla")),
        ("attention:linear", Variant("attention", "linear")),
        ("ffn:no_op", Variant("ffn", "no_op")),
        ("attention:parent", Variant("attention", "parent")),
        ("attention:parent@q8_0", Variant("attention", "parent", form="q8_0")),
        ("ffn:width=256@q4_K", Variant("ffn", "width", 256, "q4_K")),
    ],
)
def test_the_labels_of_the_docs(label: str, variant: Variant) -> None:
    assert variant.label == label
    assert parse_variant(label) == variant


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("attention:kv_head=2", "'attention:kv_head=2' is not a variant: did you mean `kv_heads`?"),
        ("ffn:kv_heads=2", "kinds of ffn are parent, width, experts, active, expert_width, "),
        ("fnn:no_op", "a label is `attention:KIND` or `ffn:KIND`; did you mean `ffn`?"),
        ("nothing", "a label is `attention:KIND` or `ffn:KIND`."),
        ("ffn:width=256@q4_k", "'q4_k' is no format; did you mean `q4_K`? there are f32, f16, bf16, q8_0, q6_K"),
        ("ffn:width=256@", "'' is no format; there are f32"),
        ("ffn:no_op@q8_0", "`no_op` has nothing to store"),
        ("ffn:width", "`width` takes a whole number, not ``"),
        ("ffn:width=", "nothing stands behind `=`"),
        ("ffn:width=0.5", "`width` takes a whole number, not `0.5`"),
        ("ffn:width=-1", "`width` takes a whole number, not `-1`"),
        ("ffn:width=٣", "`width` takes a whole number"),
        ("ffn:gla", "kinds of ffn are parent, width, experts, active, expert_width, "),
        ("attention:gla=16", "`gla` takes no value, not `16`"),
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


def test_what_is_rounded_is_what_was_trained_without() -> None:
    own, cut = parse_variant("attention:parent@q8_0"), parse_variant("ffn:width=256@q4_K")
    assert (own.bare.label, cut.bare.label) == ("attention:parent", "ffn:width=256")
    assert own.bare.is_parent
    assert own.is_own
    assert not own.is_parent
    assert cut.bare.trained
    assert not cut.trained
    assert (own.short, cut.short) == ("q8_0", "256 q4_K")
    labels = ["ffn:width=256@q4_K", "ffn:width=8", "ffn:width=256", "ffn:width=256@q8_0"]
    ranked = sorted(labels, key=lambda label: parse_variant(label).rank)
    assert ranked == ["ffn:width=256", "ffn:width=256@q8_0", "ffn:width=256@q4_K", "ffn:width=8"]
