"""What a job calls when it ends: one small document, posted to a URL that whoever administers the cluster allows.

No proxy and no redirect is followed, the answer is not read, and nothing that goes wrong here is an error.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from inlay.cluster.http import HttpError, post_json
from inlay.cluster.urls import has_password

VARIABLE = "INLAY_ON_END_ALLOW"
"""Set by whoever runs the machine or the cluster, no job file and no option can: beginnings of URLs that may be called,
between spaces or commas, such as `https://ci.example/hooks`, which allows all paths below it and nothing beside it."""
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>(?:/[A-Za-z0-9._~!$&'()*+;=:@%-]*)*)(?P<query>\?[A-Za-z0-9._~!$&'()*+;=:@%/?-]*)?"
)
_PORTS = {"http": 80, "https": 443}
_TRIES = 3
_PAUSE_SECONDS = 1.0
_TRY_SECONDS = 10.0
_ASK_LATER = 429


def check_url(url: str) -> str:
    """Return the URL as it is; raises ValueError with the rule for one that is not plain, or holds a secret."""
    if _parts(url) is None:
        raise ValueError(
            "is not a plain http or https URL, such as https://ci.example/hooks/inlay: no account, no `#`, no `..`"
        )
    if has_password(url):
        raise ValueError("has a password in it, which would be kept with the results; name a receiver that needs none")
    return url


def is_allowed(url: str) -> bool:
    """Tell whether this machine's environment allows `url` to be called."""
    asked = _parts(url)
    if asked is None:
        return False
    allowed = map(_parts, os.environ.get(VARIABLE, "").replace(",", " ").split())
    return any(own is not None and own[0] == asked[0] and asked[1][: len(own[1])] == own[1] for own in allowed)


def post_end(url: str, document: Mapping[str, Any], seconds: float) -> str | None:
    """Post `document` and return None, or why it was not taken, after at most `seconds` and three tries."""
    outcome: list[str | None] = []
    over = threading.Event()

    def work() -> None:
        outcome.append(_tried(url, document, seconds, over))

    # A server may answer byte by byte for ever, which no timeout of a socket ends.
    thread = threading.Thread(target=work, daemon=True, name="on_end")
    thread.start()
    thread.join(seconds)
    over.set()
    return outcome[0] if outcome else f"{url} did not answer within {seconds:g} s"


def _tried(url: str, document: Mapping[str, Any], seconds: float, over: threading.Event) -> str | None:
    for attempt in range(_TRIES):
        try:
            status = post_json(url, document, min(seconds, _TRY_SECONDS))
        except HttpError as error:
            reason = str(error)
        else:
            if 200 <= status < 300:
                return None
            reason = f"{url} answers with {status}"
            if status < 500 and status != _ASK_LATER:
                return reason
        if attempt + 1 < _TRIES and over.wait(_PAUSE_SECONDS * 2**attempt):
            break
    return reason


def _parts(url: str) -> tuple[tuple[str, str, int], list[str]] | None:
    """Return where a URL goes and its path's parts, or None for one that is not plain."""
    match = _URL.fullmatch(url)
    if match is None:
        return None
    path = [unquote(part) for part in match["path"].split("/")[1:]]
    # What servers, or proxies before them, may read as another path than the one that was allowed.
    if any(part in (".", "..") or "/" in part or "\\" in part for part in path):
        return None
    port = int(match["port"] or _PORTS[match["scheme"]])
    return (match["scheme"], match["host"].lower(), port), path[:-1] if path and not path[-1] else path
