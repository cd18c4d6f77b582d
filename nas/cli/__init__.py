"""The command line; `main` is the `inlay` command."""

from inlay.nas.cli.app import main

__all__ = ["main"]
