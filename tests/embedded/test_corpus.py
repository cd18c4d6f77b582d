"""The text of the embedded parent: fixed lists, present here, apart from each other."""

import sysconfig
from pathlib import Path

import pytest

from inlay.nas.embedded.corpus import documents, modules, text
from inlay.nas.errors import UserError

ELSEWHERE = ("test/", "idlelib/", "tkinter/", "lib2to3/", "distutils/", "ensurepip/", "turtledemo/", "pydoc_data/")


def test_lists_are_sorted_and_disjoint() -> None:
    train, held_out = modules("train"), modules("held_out")
    assert list(train) == sorted(set(train))
    assert list(held_out) == sorted(set(held_out))
    assert not set(train) & set(held_out)


def test_lists_name_no_module_that_a_distribution_may_split_off() -> None:
    assert not [module for module in modules("train") + modules("held_out") if module.startswith(ELSEWHERE)]


def test_every_module_is_a_document_of_this_python() -> None:
    root = Path(sysconfig.get_path("stdlib"))
    for split in ("train", "held_out"):
        found = documents(split)
        assert len(found) == len(modules(split))
        assert found[0] == (root / modules(split)[0]).read_text(encoding="utf-8")


def test_held_out_share_and_size() -> None:
    train = sum(map(len, documents("train")))
    held_out = sum(map(len, documents("held_out")))
    assert 5_000_000 < train < 9_000_000
    assert 0.08 < held_out / (train + held_out) < 0.11


def test_text_splits_back_into_the_documents() -> None:
    parts = text("held_out").split("\n<|endoftext|>\n")
    assert parts.pop() == ""
    assert parts == [document.rstrip("\n") for document in documents("held_out")]


def test_missing_module_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        documents("held_out", folder=tmp_path)
    assert str(caught.value) == (
        f"The module `asyncio/locks.py` is missing from the standard library at `{tmp_path}`: the embedded parent's "
        "text needs a complete CPython 3.11 to 3.14 (on Debian and Ubuntu, the package `libpython3-stdlib`)."
    )


def test_unknown_split() -> None:
    with pytest.raises(UserError, match=r"^`split` must be `train` or `held_out`, not `test`\.$"):
        modules("test")  # type: ignore[arg-type]
