"""An S3-compatible server (moto's) that fails one read in ten, or does not know of conditional writes, when told to."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

BUCKET = "searches"


class FaultyStore:
    """Answers on the loopback from a thread of this process until it is closed."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.fails_reads, self.is_conditional = False, True
        self.failed = 0
        """Reads that failed so far."""
        self._reads = itertools.count(1)
        self._application = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        threading.Thread(target=self._server.serve_forever, daemon=True, name="store").start()

    @property
    def environment(self) -> dict[str, str]:
        """What processes need to use it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_port}",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def make_bucket(self) -> None:
        """Make the bucket; the environment of this process names the server already."""
        import s3fs

        s3fs.S3FileSystem().mkdir(BUCKET)

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if self.fails_reads and environ["REQUEST_METHOD"] == "GET" and next(self._reads) % 10 == 0:
            self.failed += 1
            start_response("503 Service Unavailable", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"]
        if not self.is_conditional:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        answer: Iterable[bytes] = self._application(environ, start_response)
        return answer
