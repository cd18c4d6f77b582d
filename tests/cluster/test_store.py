"""One contract for every store, run on a folder and on fsspec filesystems, and what damage and a full disk say."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from inlay.cluster import Store, StoreError


class StoreContract:
    """What every store must do; subclasses give the store."""

    def test_what_is_put_is_read_back(self, store: Store) -> None:
        store.put("tables/scores.json", b"one")
        assert store.get("tables/scores.json") == b"one"
        store.put("tables/scores.json", b"two")
        assert store.get("tables/scores.json") == b"two"
        assert store.exists("tables/scores.json")
        assert not store.exists("tables/costs.json")

    def test_a_missing_key_names_itself(self, store: Store) -> None:
        with pytest.raises(StoreError, match=r"nothing\.json does not exist"):
            store.get("nothing.json")

    def test_put_if_absent_lets_exactly_one_writer_win(self, store: Store) -> None:
        with ThreadPoolExecutor(8) as pool:
            wins = list(pool.map(lambda n: store.put_if_absent("records/x.json", str(n).encode()), range(16)))
        assert sum(wins) == 1
        assert store.get("records/x.json") == str(wins.index(True)).encode()

    def test_list_is_sorted_and_keeps_to_the_prefix(self, store: Store) -> None:
        for key in ("a/2", "a/1", "a/b/3", "ab", "c"):
            store.put(key, b"")
        assert store.list("a/") == ["a/1", "a/2", "a/b/3"]
        assert store.list("a") == ["a/1", "a/2", "a/b/3", "ab"]
        assert store.list("nowhere/") == []
        assert store.list() == ["a/1", "a/2", "a/b/3", "ab", "c"]

    def test_delete_is_final_and_may_be_repeated(self, store: Store) -> None:
        store.put("x", b"1")
        store.delete("x")
        store.delete("x")
        assert not store.exists("x")
        assert store.list() == []

    def test_blobs_are_named_by_their_content(self, store: Store, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.write_bytes(b"weights" * 1000)
        digest = store.put_blob(b"weights" * 1000)
        assert store.put_blob(source) == digest
        assert source.exists()
        assert store.take_blob(source) == digest
        assert not source.exists()
        assert store.get_blob(digest) == b"weights" * 1000
        assert store.blob_path(digest).read_bytes() == b"weights" * 1000
        assert store.list("blobs/") == [f"blobs/{digest}"]

    def test_a_large_file_becomes_a_blob(self, store: Store) -> None:
        path = store.temporary_path()
        path.write_bytes(os.urandom(1 << 20) * 5)
        content = path.read_bytes()
        assert store.get_blob(store.take_blob(path)) == content

    def test_a_damaged_blob_is_named(self, store: Store) -> None:
        digest = store.put_blob(b"weights")
        store.put(f"blobs/{digest}", b"weig")
        with pytest.raises(StoreError, match=rf"blob .*{digest} is damaged: its 4 bytes .* delete it"):
            store.get_blob(digest)

    def test_a_file_of_a_blob_is_checked_once_and_again_when_it_changed(self, store: Store) -> None:
        size = 16 << 20
        digest = store.put_blob(os.urandom(1 << 20) * 16)
        path = store.blob_path(digest)
        before = bytes_read()
        for _ in range(5):
            assert Store(store.url).blob_path(digest) == path
        assert bytes_read() - before < size / 4
        path.write_bytes(b"weig")
        with pytest.raises(StoreError, match=rf"blob .*{digest} is damaged: its 4 bytes .* delete it"):
            store.blob_path(digest)

    def test_a_blob_is_copied_to_a_name(self, store: Store) -> None:
        digest = store.put_blob(b"weights")
        store.put("child/model.safetensors", b"older")
        store.copy_blob(digest, "child/model.safetensors")
        assert store.get("child/model.safetensors") == store.get_blob(digest) == b"weights"

    def test_damaged_json_is_named(self, store: Store) -> None:
        store.put("state.json", b'{"a": ')
        with pytest.raises(StoreError, match=r"state\.json is damaged"):
            store.get_json("state.json")

    def test_json_is_the_same_bytes_for_the_same_value_and_refuses_nan(self, store: Store) -> None:
        store.put_json("a.json", {"b": 1, "a": [1.5, "é"]})
        store.put_json("b.json", {"a": [1.5, "é"], "b": 1})
        assert store.get("a.json") == store.get("b.json")
        with pytest.raises(ValueError, match="not JSON compliant"):
            store.put_json("c.json", {"kl": float("nan")})

    @pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", "a\nb", "a b", "./a", "a/."])
    def test_keys_cannot_leave_the_store(self, store: Store, key: str) -> None:
        with pytest.raises(ValueError, match="is not a store key"):
            store.put(key, b"")

    def test_it_travels_to_workers(self, store: Store) -> None:
        store.put("x", b"1")
        assert pickle.loads(pickle.dumps(store)).get("x") == b"1"


class TestFolder(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return Store(tmp_path / "workspace")

    def test_nothing_is_left_beside(self, store: Store, tmp_path: Path) -> None:
        store.put("a", b"1")
        store.put_if_absent("a", b"2")
        store.put_blob(b"3")
        assert list((tmp_path / "workspace" / ".tmp").iterdir()) == []


class TestFileUrl(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return Store(f"file://{tmp_path}/workspace")


class TestMemory(StoreContract):
    """An fsspec filesystem that is no folder."""

    @pytest.fixture
    def store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        return Store(f"memory://{tmp_path.name}/workspace")

    def test_a_blob_comes_in_chunks_once_for_all_who_ask_and_anew_after_damage(self, store: Store) -> None:
        size = 64 << 20
        digest = store.put_blob(os.urandom(1 << 20) * 64)
        tracemalloc.start()
        try:
            with ThreadPoolExecutor(4) as pool:
                (path,) = set(pool.map(lambda _: Store(store.url).blob_path(digest), range(4)))
            assert tracemalloc.get_traced_memory()[1] < size / 4
        finally:
            tracemalloc.stop()
        assert path.stat().st_size == size
        assert [other for other in path.parent.iterdir() if other.is_file()] == [path]
        path.write_bytes(b"cut short")
        with pytest.raises(StoreError, match="is damaged: its 9 bytes"):
            store.blob_path(digest)
        assert store.blob_path(digest).stat().st_size == size

    def test_copies_that_nobody_used_for_a_month_go(self, store: Store) -> None:
        old, used, new = (store.put_blob(content) for content in (b"old", b"used", b"new"))
        paths = [store.blob_path(digest) for digest in (old, used)]
        for path in paths:
            os.utime(path, (time.time() - 31 * 24 * 3600, path.stat().st_mtime))
        store.blob_path(used)
        store.blob_path(new)
        assert [path.exists() for path in paths] == [False, True]
        assert store.blob_path(old).read_bytes() == b"old"

    def test_a_blob_that_is_not_there_is_named(self, store: Store) -> None:
        with pytest.raises(StoreError, match=r"blobs/0{64} does not exist"):
            store.blob_path("0" * 64)


def bytes_read() -> int:
    """What this process has read so far, files in the page cache included."""
    try:
        return int(Path("/proc/self/io").read_text().split()[1])
    except OSError:
        pytest.skip("the system does not count what a process reads")


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(StoreError, match=r"the store gopher://x cannot be opened: Protocol not known: gopher"):
        Store("gopher://x")


def test_a_store_that_its_client_cannot_open(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=rf"the store zip://x::{tmp_path} cannot be opened: .*Is a directory"):
        Store(f"zip://x::{tmp_path}")
    with pytest.raises(StoreError, match=r"the store a\\x1b://b cannot be opened"):
        Store("a\x1b://b")


def test_a_missing_library_of_a_store_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(StoreError, match=r"the store gs://bucket/x cannot be opened: .*; pip install 'inlay\[gcs\]'"):
        Store("gs://bucket/x")


WRITE_TOO_MUCH = """
import resource, sys
from pathlib import Path
from inlay.cluster import Store, StoreError
store = Store(sys.argv[1])
store.put("small", b"1")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
source = Path(sys.argv[1]) / "source"
for write in (lambda: store.put("large", bytes(200_000)), lambda: store.put_if_absent("large", bytes(200_000))):
    try:
        write()
    except StoreError as error:
        print(error)
"""


def test_a_full_disk_says_bytes_and_path_and_keeps_what_is_there(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRITE_TOO_MUCH, str(tmp_path / "w")], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith(f"200000 bytes could not be written to {tmp_path}/w/large: no space is left there")
    assert Store(tmp_path / "w").list() == ["small"]
    assert list((tmp_path / "w" / ".tmp").iterdir()) == []


def test_a_really_full_file_system(tmp_path: Path) -> None:
    """A tiny tmpfs where this account may mount one; a limit on file sizes stands in for it elsewhere (above)."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("this account may not mount a tmpfs")
    try:
        store = Store(folder)
        store.put("small", b"1")
        with pytest.raises(StoreError, match=r"1000000 bytes could not be written to .*/large: no space is left"):
            store.put("large", bytes(1_000_000))
        with pytest.raises(StoreError, match=r"1000000 bytes could not be written to .*/blobs/"):
            store.put_blob(bytes(1_000_000))
        assert store.get("small") == b"1"
        store.put("small", b"2")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


KILLED_WITHOUT_HARD_LINKS = """
import errno, os, pathlib, sys
from inlay.cluster import Store
def link(*names):
    raise OSError(errno.EPERM, "Operation not permitted")
def die(*names):
    os.kill(os.getpid(), 9)
os.link = link
if sys.argv[2] == "killed":
    os.replace = os.rename = pathlib.Path.replace = pathlib.Path.rename = die
print(Store(sys.argv[1]).put_if_absent("records/x.json", sys.argv[2].encode()), flush=True)
"""


def test_a_kill_on_a_file_system_without_hard_links_leaves_no_empty_record(tmp_path: Path) -> None:
    """As when the process dies between the claim of a name and its content."""
    store = Store(tmp_path / "workspace")

    def write(content: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", KILLED_WITHOUT_HARD_LINKS, store.url, content]
        return subprocess.run(command, capture_output=True, text=True)

    assert write("killed").returncode == -9
    assert not store.exists("records/x.json")
    assert write("first").stdout == "True\n"
    assert write("second").stdout == "False\n"
    assert store.get("records/x.json") == b"first"


def test_one_writer_wins_on_a_file_system_without_hard_links(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_WITHOUT_HARD_LINKS, str(tmp_path / "workspace")]
    writers = [subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, text=True) for n in range(4)]
    assert sorted(writer.communicate()[0] for writer in writers) == ["False\n"] * 3 + ["True\n"]


READ = """
import sys
from pathlib import Path
from inlay.cluster.store import Store
store = Store(sys.argv[1])
def read_bytes():
    (line,) = (line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar"))
    return int(line.split()[1])
before = read_bytes()
store.blob_path(sys.argv[2])
print(read_bytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="tells how much a process read: Linux")
def test_a_machine_reads_a_blob_once_to_check_it(tmp_path: Path) -> None:
    size = 4 << 20
    store = Store(tmp_path / "store")
    digest = store.put_blob(bytes(size))
    path = store.blob_path(digest)
    os.utime(path, ns=(1, 1))  # long ago

    def read() -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        command = [sys.executable, "-P", "-c", READ, store.url, digest]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    first, second = (int(read().stdout) for _ in range(2))
    assert first >= size
    assert second < size // 100
    path.write_bytes(bytes(size - 1) + b"x")  # a file that changed is checked again
    assert f"its {size} bytes do not have the digest in its name" in read().stderr
