"""The page that tells newcomers where things are names only what is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_file_and_folder_of_the_page_exists() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`((?:nas|cluster|solver|distill|kernels)/[\w./-]+)`", page)
    assert len(set(named)) > 12
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_room_of_nas_is_on_the_page() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rooms = [path.name for path in (ROOT / "nas").iterdir() if (path / "__init__.py").exists()]
    assert [room for room in rooms if f"`{room}/`" not in page and f"{room}/ " not in page] == []
