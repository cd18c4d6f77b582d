"""A parent by its name in MLflow's registry: `models:/NAME@ALIAS` or `models:/NAME/VERSION`, brought to the user's
cache."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from inlay.cluster.registry import RegistryError, fetch_version, find_version
from inlay.nas.errors import UserError

REGISTERED: Final = "models:/"
_NAME: Final = re.compile(r"[\w .\-]+")
_ALIAS: Final = re.compile(r"[\w\-]+")
_FORM: Final = re.compile(rf"{REGISTERED}(?P<name>[\w .\-]+)(?:@(?P<alias>[\w\-]+)|/(?P<version>\d+))")


def is_registered(name: str) -> bool:
    """Whether a name is meant as a model of a registry."""
    return name.startswith(REGISTERED)


def check_model_name(name: str) -> str:
    """The name; raises ValueError for one that MLflow refuses, or that `models:/NAME@ALIAS` could not say."""
    if _NAME.fullmatch(name) is None or not name.strip(" ."):
        raise ValueError("is no name for a registered model; use letters, digits, spaces and _ - . only")
    return name


def check_model_alias(alias: str) -> str:
    """The alias; raises ValueError for one that MLflow refuses."""
    if _ALIAS.fullmatch(alias) is None:
        raise ValueError("is no alias; use letters, digits, _ and - only")
    if alias.lower() == "latest" or re.fullmatch(r"[vV]\d+", alias):
        raise ValueError("is kept by MLflow for itself; write another, such as champion")
    return alias


def check_registered_form(name: str) -> None:
    """Raises ValueError unless a name in the registry says which version is meant."""
    if _FORM.fullmatch(name) is None:
        raise ValueError("names no version of a registered model; write models:/NAME@ALIAS or models:/NAME/VERSION")


def registered_folder(name: str, tracking: str | None, field: str) -> Path:
    """The model folder of a version in the registry, downloaded where it is not in the cache yet.

    Args:
        name: as `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        tracking: the MLflow store; None: MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db` here.
        field: what a mistake is told of, such as `parent`.

    Raises:
        UserError: the form is wrong, there is no such model, version or alias, it is no child of inlay, its weights are
            not in the store, or the store has no registry or cannot be reached.
    """
    try:
        check_registered_form(name)
        found = _FORM.fullmatch(name)
        assert found is not None
        return fetch_version(find_version(tracking, found["name"], found["alias"], found["version"]))
    except (ValueError, RegistryError) as error:
        raise UserError(f"{field}: `{name}` {error}") from None
