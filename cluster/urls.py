"""Passwords in URLs, and what else is secret in a text that is shown or kept.

Every pattern here reads a text in one pass, since the texts are other people's: none repeats what another could match.
"""

from __future__ import annotations

import os
import re

_VARIABLES = re.compile(r"TOKEN|PASSWORD|SECRET|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
_URL = re.compile(r"://[^\s\"'<>]*")
_ACCOUNT = re.compile(r"\A://[^:/@]*(?::[^@]*)?@")
"""As SQLAlchemy reads one, where a password ends at `@` and may have slashes in it."""
_QUERY = re.compile(
    r"((?:token|password|passwd|pwd|secret|access_?key|credential)[\w.-]{0,40})(?:=[^&;]*|%3d(?:(?!%3b)[^&])*)",
    re.IGNORECASE,
)


def has_password(url: str) -> bool:
    """Tell whether a URL carries a password, which would be kept wherever the URL is."""
    if "://" not in url:
        return False
    from sqlalchemy.engine import make_url  # which takes a quarter of a second to import
    from sqlalchemy.exc import ArgumentError

    try:
        if make_url(url).password is not None:
            return True
    except (ArgumentError, ValueError):  # no database's, such as one with a dot in its scheme
        account = _ACCOUNT.match(url[url.index("://") :])
        if account is not None and ":" in account[0].removeprefix("://"):
            return True
    return _QUERY.search(url.partition("?")[2]) is not None


def redacted(text: str) -> str:
    """Return `text` without passwords of URLs and without the values of this process's secret variables."""
    text = _URL.sub(lambda url: _hidden(url[0]), text)
    for name, value in os.environ.items():
        if len(value) >= 8 and _VARIABLES.search(name) and not name.endswith(("_PATH", "_FILE")):
            text = text.replace(value, "***")
    return text


def _hidden(url: str) -> str:
    place, mark, query = _ACCOUNT.sub("://***@", url).partition("?")
    return place + mark + _QUERY.sub(r"\1=***", query)
