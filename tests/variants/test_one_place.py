"""Which kind something is, is asked in the kinds' own files and nowhere else."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import inlay
from inlay.nas.modeling import SUBBLOCKS
from inlay.nas.variants import KINDS

ROOT = Path(inlay.__file__).resolve().parent.parent
ROOMS = ("nas", "distill", "cluster", "kernels")
SINGLE = [name for name, kind in KINDS.items() if len(kind.keys) == 1]
NAMES = {*SINGLE, *SUBBLOCKS.names("attention"), *SUBBLOCKS.names("ffn")}
OWN_FILES = {*(f"nas/variants/{name}.py" for name in SINGLE)} | {
    f"nas/modeling/{name}_inlay.py" for slot in ("attention", "ffn") for name in SUBBLOCKS.names(slot)
}


def questions(source: str) -> list[int]:
    """Lines that compare a kind, or look one up, by a name written out."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            found += [node.lineno] if _tells_kind(node) and _names_one(node) else []
        elif isinstance(node, ast.Match):
            patterns = [case.pattern for case in node.cases]
            found += [node.lineno] if _tells_kind(node.subject) and any(map(_names_one, patterns)) else []
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "endswith":
            ends = [each.value for each in node.args if isinstance(each, ast.Constant)]
            found += [node.lineno] if any(str(end).lstrip(":") in NAMES and ":" in str(end) for end in ends) else []
        elif isinstance(node, ast.Dict):
            keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
            found += [node.lineno] if len(keys & NAMES) > 1 else []
    return found


def _tells_kind(node: ast.AST) -> bool:
    """Whether a name, an attribute or a key in it says that it is a kind."""
    return any(
        (isinstance(each, ast.Name) and each.id.endswith("kind"))
        or (isinstance(each, ast.Attribute) and each.attr.endswith("kind"))
        or (isinstance(each, ast.Constant) and each.value == "kind")
        for each in ast.walk(node)
    )


def _names_one(node: ast.AST) -> bool:
    return any(isinstance(each, ast.Constant) and each.value in NAMES for each in ast.walk(node))


def test_nobody_else_asks_which_kind() -> None:
    files = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    assert len(files) > 100
    asked = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in files
        if str(path.relative_to(ROOT)) not in OWN_FILES
        for line in questions(path.read_text(encoding="utf-8"))
    }
    assert not asked


@pytest.mark.parametrize(
    "asks",
    [
        'if variant.kind == "no_op": pass',
        'x = entry["kind"] in ("full", "window")',
        'match entry["kind"]:\n    case "linear": pass',
        'free = label.endswith(":no_op")',
        'words = {"no_op": "-", "linear": "lin"}[kind]',
    ],
)
def test_such_questions_are_found(asks: str) -> None:
    assert questions(asks)


@pytest.mark.parametrize("asks", ['if event.kind == "kept": pass', "if variant.kind == other.kind: pass"])
def test_other_questions_are_not(asks: str) -> None:
    assert not questions(asks)


def test_every_kind_has_its_file() -> None:
    assert all((ROOT / file).is_file() for file in OWN_FILES)
