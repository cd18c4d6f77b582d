"""Passwords in URLs: found wherever a database or a store would look for them, and never shown."""

from __future__ import annotations

import subprocess
import sys
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.cluster.urls import has_password, redacted

WITH = [
    "postgresql+psycopg2://ada:pass@db/mlflow",
    "postgresql://me:pa/ss@host",
    "postgresql://me:pa/ss@host/db?sslmode=require",
    "postgresql://db/mlflow?user=me&password=hush",
    "postgresql://db/mlflow?sslpassword=hush",
    "mysql://db/mlflow?passwd=hush",
    "mssql+pyodbc://?odbc_connect=DRIVER%3DODBC%3BUID%3Dme%3BPWD%3Dhush",
    "s3://key:secret@bucket/x",
    "s3://key:sec/ret@bucket/x",
    "https://:token@host",
    "https://host/x?access_token=hush",
    "memory+x.y-z://me:hush@host",
]
WITHOUT = [
    "https://ada@host/x",
    "s3://bucket/a:b@c",
    "/folder/a:b@c",
    "/folder/a?password=b",
    "inlay:pystdlib/train",
    "postgresql://ada@db/mlflow?sslmode=require",
    "http://127.0.0.1:5000",
    "http://[::1]:5000/x",
    "sqlite:////home/ada/mlflow.db",
]


@pytest.mark.parametrize("url", WITH)
def test_a_password_is_found_and_hidden(url: str) -> None:
    assert has_password(url)
    shown = redacted(f"the store {url} is away")
    assert not any(word in shown for word in ("pass@", "hush", "secret", "sec/ret", "pa/ss", "ss@", ":token"))
    assert shown.startswith("the store ")
    assert shown.endswith(" is away")


@pytest.mark.parametrize("url", WITHOUT)
def test_no_password_is_seen_where_there_is_none(url: str) -> None:
    assert not has_password(url)


@pytest.mark.parametrize("url", [url for url in WITHOUT if "ada@" not in url])
def test_what_holds_no_secret_is_shown_as_it_is(url: str) -> None:
    assert redacted(url) == url


@settings(deadline=None)
@given(st.text(min_size=3, max_size=12).filter(lambda text: "@" not in text))
def test_any_quoted_password_is_found_and_hidden(password: str) -> None:
    secret = quote(password, safe="/")
    url = f"postgresql://me:{secret}@host/db"
    assert has_password(url)
    assert redacted(url) == "postgresql://***@host/db"


HARD = """
import sys
from inlay.cluster.urls import has_password, redacted
for unit in ("a", ":", "a:", "a://", "a://b:", "?password", "@", "%3d", "&token=", "a.", " "):
    for text in (unit * (1_000_000 // len(unit)), "a://" + unit * (1_000_000 // len(unit))):
        has_password(text)
        redacted(text)
print("done")
"""


def test_a_megabyte_of_anything_is_read_in_one_pass() -> None:
    """What is quadratic takes hours for it; a minute is for slow machines."""
    done = subprocess.run([sys.executable, "-c", HARD], capture_output=True, text=True, timeout=60)
    assert done.stdout == "done\n", done.stderr
