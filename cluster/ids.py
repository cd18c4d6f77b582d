"""Identifiers that people give: checked here before they become a path, a tag or a job's name."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from urllib.parse import urlsplit

_JOB_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LISTED_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_TAG_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,98}[A-Za-z0-9])?")
_TAG_RULE = "name=value, the name of letters, digits and _.- in between"
_LONGEST_TAG = 500
_LONGEST_URL = 2_000
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def parse_job_id(text: str) -> str:
    """Return a job id as it is; raises ValueError with the rule."""
    if not _JOB_ID.fullmatch(text):
        raise ValueError(
            f"{text[:80]!r} is not a job id: 1 to 63 lower-case letters, digits and dashes, no dash at either end"
        )
    return text


def parse_listed_id(text: str) -> str:
    """Return the id of a job that is there, Ray's own `raysubmit_...` among them; raises ValueError with the rule."""
    if not _LISTED_ID.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is not the id of a job; `inlay list` shows those there are")
    return text


def new_job_id(name: str) -> str:
    """Return a fresh job id that begins like `name`."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "job"
    return parse_job_id(f"{slug}-{secrets.token_hex(4)}")


def parse_tags(texts: Sequence[str]) -> dict[str, str]:
    """Return `name=value` texts as a mapping; raises ValueError with the rule."""
    tags: dict[str, str] = {}
    for name, value in map(_tag, texts):
        if value is None:
            raise ValueError(f"{name[:80]!r} is not a tag: {_TAG_RULE}")
        if name in tags:
            raise ValueError(f"the tag `{name}` is given twice")
        tags[name] = value
    return tags


def parse_wanted_tags(texts: Sequence[str]) -> dict[str, str | None]:
    """Return `name=value` texts, and names alone, as a mapping; None is any value; raises ValueError with the rule."""
    wanted: dict[str, str | None] = {}
    for name, value in map(_tag, texts):
        if name in wanted:
            raise ValueError(f"the tag `{name}` is given twice, and jobs must have all that are given")
        wanted[name] = value
    return wanted


def _tag(text: str) -> tuple[str, str | None]:
    name, separator, value = text.partition("=")
    if not _TAG_NAME.fullmatch(name):
        raise ValueError(f"{text[:80]!r} is not a tag: {_TAG_RULE}")
    if len(value) > _LONGEST_TAG or any(ord(character) < 32 for character in value):
        raise ValueError(f"the value of the tag `{name}` is longer than {_LONGEST_TAG} or has control characters")
    return name, value if separator else None


def parse_server(text: str) -> str:
    """Return the URL of a job server, `http://host:port`; raises ValueError for anything else."""
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url if len(url) <= _LONGEST_URL else "")
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise ValueError(f"{text[:200]!r} is not the address of a job server, such as http://head.example:8265")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path.rstrip('/')}"


def is_loopback(server: str) -> bool:
    """Tell whether a job server's URL is on this machine."""
    return urlsplit(server).hostname in _LOOPBACK
