"""The form of a Hugging Face hub id, `owner/name`; whether a name of that form means the hub is the caller's to say."""

import re
from typing import Final

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def has_hub_form(name: str) -> bool:
    """Whether `name` has the form of a hub id."""
    return _HUB_ID.fullmatch(name) is not None
