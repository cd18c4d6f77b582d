"""The token of this account's Ray clusters: made before Ray would make it, and sent to Ray's servers."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def protect_token() -> None:
    """See that the token of this account's Ray clusters exists and that nobody else may read it.

    Ray would write it itself, readable by all. Where the home folder cannot be written, the token lives as long as
    this process.
    """
    if os.environ.get("RAY_AUTH_MODE", "token") != "token" or "RAY_AUTH_TOKEN" in os.environ:
        return
    path = _token_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "w") as stream:
                stream.write(secrets.token_hex(32))
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except OSError:
        if not path.exists():
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def ray_authorization() -> str | None:
    """Return the header for Ray's servers, None without a token."""
    token = _ray_token()
    return None if token is None else f"Bearer {token}"


def _ray_token() -> str | None:
    """Return the token for Ray's servers: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, or this account's."""
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return None
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    try:
        return _token_file().read_text().strip() or None
    except OSError:
        return None


def _token_file() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
