"""YAML from anybody: plain values, bounded, every failure a sentence that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from inlay.nas.errors import UserError
from inlay.nas.job.load import LARGEST_BYTES, parse_yaml, read_text

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1, 2", "not valid YAML at line 1"),
        ("a: 1\na: 2", "line 2, column 1: the key `a` is there twice"),
        ("- 1\n- 2", "holds [1, 2], not a mapping"),
        ("3", "holds 3, not a mapping"),
        ("1: x", "has the key 1, which is not a name"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: !foo 3", "could not determine a constructor"),
        ("a: &x [*x]", "an alias that contains itself"),
        ("a: *nowhere", "undefined alias"),
        ("a: \x07", "not valid YAML"),
        ("a: 1\n---\nb: 2", "but found another document"),
        ("a: [" + "1," * 30_000 + "]", "more than 10000 values"),
        (BOMB, "more than 10000 values"),
        ("a: " + "[" * 1500, "nested too deeply"),
        ("{" * 1500, "nested too deeply"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("? [1, 2]\n: 3", "not valid YAML"),
        ("a: 0b", "nothing"),
    ],
)
def test_refused_in_one_line(text: str, words: str) -> None:
    if words == "nothing":
        assert parse_yaml(text, "job.yaml") == {"a": "0b"}
        return
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "job.yaml")
    assert words in str(caught.value)
    assert str(caught.value).startswith("job.yaml ")
    assert "\n" not in str(caught.value)


def test_plain_things_are_read() -> None:
    assert parse_yaml("a: 1e-3\nb: 2024-01-01\nc: &x [1]\nd: *x\n", "f") == {
        "a": "1e-3",
        "b": "2024-01-01",
        "c": [1],
        "d": [1],
    }
    assert parse_yaml("", "f") == {}
    assert parse_yaml("base: &b {x: 1}\nother: {<<: *b, y: 2}", "f")["other"] == {"x": 1, "y": 2}


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    with pytest.raises(UserError, match=r"there is no job file .*; `inlay init"):
        read_text(file)
    with pytest.raises(UserError, match="is a folder"):
        read_text(tmp_path)
    file.write_bytes(b"parent: \xff\xfe")
    with pytest.raises(UserError, match="is not UTF-8 at byte 8"):
        read_text(file)
    file.write_bytes(b"#" * (LARGEST_BYTES + 1))
    with pytest.raises(UserError, match="is larger than 500000 bytes"):
        read_text(file)
    file.write_bytes(b"\xef\xbb\xbfseed: 1\n")
    assert read_text(file) == "seed: 1\n"
    with pytest.raises(UserError, match="cannot be read"):
        read_text("a\0b")
