"""Identifiers from people: what is taken, what is refused, and that nothing refused gets through."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inlay.cluster.ids import is_loopback, new_job_id, parse_job_id, parse_server, parse_tags, parse_wanted_tags


@given(st.text(max_size=80))
def test_a_job_id_is_safe_as_a_path_and_in_a_url_or_refused(text: str) -> None:
    if re.fullmatch(r"[a-z0-9-]{1,63}", text) and not text.startswith("-") and not text.endswith("-"):
        assert parse_job_id(text) == text
    else:
        with pytest.raises(ValueError, match=r"\A[^\n]* is not a job id: 1 to 63[^\n]*\Z"):
            parse_job_id(text)


@pytest.mark.parametrize("text", ["", "../x", "a/b", "A", "a b", "a\n", "-a", "a-", "a" * 64, "a\x00", "ä"])
def test_job_ids_that_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a job id"):
        parse_job_id(text)


@given(st.text(max_size=200))
def test_a_new_id_is_right_for_any_name(name: str) -> None:
    assert parse_job_id(new_job_id(name)) != new_job_id(name)


@given(st.lists(st.text(max_size=40), max_size=3))
def test_tags_are_plain_or_refused(texts: list[str]) -> None:
    try:
        tags = parse_tags(texts)
    except ValueError:
        return
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in tags)
    assert not any(ord(character) < 32 for value in tags.values() for character in value)


def test_tags() -> None:
    assert parse_tags(["team=blue", "note=a = b"]) == {"team": "blue", "note": "a = b"}
    with pytest.raises(ValueError, match="given twice"):
        parse_tags(["a=1", "a=2"])
    with pytest.raises(ValueError, match="is not a tag: name=value"):
        parse_tags(["team"])
    with pytest.raises(ValueError, match="control characters"):
        parse_tags(["a=1\n2"])


def test_wanted_tags_may_be_names_alone() -> None:
    assert parse_wanted_tags(["team=blue", "night", "empty="]) == {"team": "blue", "night": None, "empty": ""}
    with pytest.raises(ValueError, match="the tag `a` is given twice"):
        parse_wanted_tags(["a=1", "a"])
    with pytest.raises(ValueError, match="is not a tag: name=value"):
        parse_wanted_tags(["a b"])


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("head:8265", "http://head:8265"),
        ("http://127.0.0.1:8265/", "http://127.0.0.1:8265"),
        ("https://ray.example/cluster/", "https://ray.example/cluster"),
        ("http://[::1]:8265", "http://[::1]:8265"),
    ],
)
def test_servers(text: str, url: str) -> None:
    assert parse_server(text) == url


@pytest.mark.parametrize(
    "text", ["ray://head:10001", "http://user:word@head", "http://", "http://head:x", "file:///etc", "http://h?x=1"]
)
def test_what_is_no_server(text: str) -> None:
    with pytest.raises(ValueError, match="is not the address of a job server"):
        parse_server(text)


def test_loopback() -> None:
    assert is_loopback("http://127.0.0.1:8265")
    assert not is_loopback("http://127.0.0.1.example.org:8265")


def test_an_address_longer_than_any_is_refused_before_it_is_taken_apart() -> None:
    with pytest.raises(ValueError, match="is not the address of a job server"):
        parse_server("http://" + "\ufdfa" * 3_000)
