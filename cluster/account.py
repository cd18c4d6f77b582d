"""Whose job it is: the name of the account that submits."""

from __future__ import annotations

import getpass
import os

_LONGEST = 64


def account_name() -> str:
    """Return the name of this account as the system or LOGNAME has it, the number of one that has no name."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that no file of accounts names
        name = str(os.getuid())
    return "".join(character for character in name if character.isprintable())[:_LONGEST]
