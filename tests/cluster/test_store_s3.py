"""The store contract on an S3-compatible HTTP server (moto's), where s3fs and moto are installed."""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from inlay.cluster import Store

pytest.importorskip("s3fs", reason="s3fs is an optional dependency")
moto_server = pytest.importorskip("moto.server", reason="moto is an optional dependency of tests")

_spec = importlib.util.spec_from_file_location("store_contract", Path(__file__).with_name("test_store.py"))
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)


class TestS3(_module.StoreContract):  # type: ignore[name-defined, misc]
    @pytest.fixture(scope="class")
    def endpoint(self) -> Iterator[str]:
        server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
        server.start()
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
        server.stop()

    @pytest.fixture
    def store(self, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
        import s3fs

        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        for name, value in (("AWS_ENDPOINT_URL", endpoint), ("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")):
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        bucket = f"bucket-{uuid.uuid4().hex[:8]}"
        s3fs.S3FileSystem().mkdir(bucket)
        return Store(f"s3://{bucket}/workspace")
