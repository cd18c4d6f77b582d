"""What is called when a job ends: only what is allowed, once it is taken, and never for longer than was given."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from inlay.cluster.on_end import VARIABLE, check_url, is_allowed, post_end


class Receiver(BaseHTTPRequestHandler):
    """Notes what it is sent and answers with the statuses it was given, then with 204."""

    heard: list[tuple[str, object]]
    statuses: list[int]
    url: str

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.heard.append((self.path, json.loads(content)))
        if self.path == "/drips":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            while True:
                self.wfile.write(b"X-More: 1\r\n")
                time.sleep(0.05)
        self.send_response(self.statuses.pop(0) if self.statuses else 204)
        self.send_header("Location", f"{self.url}/elsewhere")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@pytest.fixture
def receiver() -> Iterator[type[Receiver]]:
    handler = type("Handler", (Receiver,), {"heard": [], "statuses": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # callers hang up
    handler.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler
    server.shutdown()
    server.server_close()


def test_a_document_is_posted(receiver: type[Receiver]) -> None:
    assert post_end(f"{receiver.url}/hook?team=blue", {"state": "SUCCEEDED"}, 10) is None
    assert receiver.heard == [("/hook?team=blue", {"state": "SUCCEEDED"})]


def test_a_server_that_is_away_is_called_again(receiver: type[Receiver]) -> None:
    receiver.statuses += [503, 429]
    assert post_end(f"{receiver.url}/hook", {"n": 1}, 20) is None
    assert len(receiver.heard) == 3


def test_a_server_that_refuses_is_called_once(receiver: type[Receiver]) -> None:
    receiver.statuses += [404]
    assert post_end(f"{receiver.url}/hook", {}, 10) == f"{receiver.url}/hook answers with 404"
    assert len(receiver.heard) == 1


def test_neither_redirects_nor_proxies_are_followed(receiver: type[Receiver], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    receiver.statuses += [307]
    assert post_end(f"{receiver.url}/hook", {}, 10) == f"{receiver.url}/hook answers with 307"
    assert receiver.heard == [("/hook", {})]


def test_a_server_that_never_ends_its_answer_is_left(receiver: type[Receiver]) -> None:
    begun = time.monotonic()
    assert post_end(f"{receiver.url}/drips", {}, 1) == f"{receiver.url}/drips did not answer within 1 s"
    assert time.monotonic() - begun < 5


def test_nobody_listens() -> None:
    reason = post_end("http://127.0.0.1:9/hook", {}, 10)
    assert reason == "nothing answers at http://127.0.0.1:9/hook (Connection refused)"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://ci.example/hook",
        "ci.example/hook",
        "file:///etc/passwd",
        "http://",
        "http://ada@ci.example/hook",
        "http://ada:secret@ci.example/hook",
        "http://ci.example/hook#part",
        "http://ci.example/a/../b",
        "http://ci.example/a/%2e%2E/b",
        "http://ci.example/a/%2Fb",
        "http://ci.example\\@other.example/",
        "http://ci.example/a b",
        "http://ci.example/a\n",
        "http://cï.example/",
        "http://ci.example:99999999/",
    ],
)
def test_only_plain_urls_can_be_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="is not a plain http or https URL"):
        check_url(url)
    monkeypatch.setenv(VARIABLE, f"{url} http://ci.example")
    assert not is_allowed(url)


def test_a_secret_in_the_query_is_refused() -> None:
    with pytest.raises(ValueError, match="has a password in it"):
        check_url("https://ci.example/hook?token=abc")


@pytest.mark.parametrize(
    ("allowed", "yes", "no"),
    [
        ("", [], ["http://ci.example/"]),
        ("http://ci.example", ["http://ci.example/", "http://CI.example:80/any?x=1"], ["https://ci.example/"]),
        ("https://ci.example/hooks", ["https://ci.example/hooks", "https://ci.example/hooks/inlay"],
         ["https://ci.example/hooksX", "https://ci.example/", "https://ci.example:8443/hooks"]),
        ("https://ci.example/hooks/", ["https://ci.example/hooks/a"], ["https://ci.example/hook/a"]),
        ("a, http://[::1]:8000/x http://two.example", ["http://[::1]:8000/x", "http://two.example/y"], ["http://a/"]),
        ("http://ci.example", [], ["http://ci.example.evil.example/", "http://ci.example@evil.example/"]),
    ],
)  # fmt: skip
def test_what_is_allowed(allowed: str, yes: list[str], no: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, allowed)
    assert all(map(is_allowed, yes))
    assert not any(map(is_allowed, no))
