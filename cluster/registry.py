"""MLflow's registry, read: which version a name means, and that child's folder brought to this account's cache."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inlay.cluster.store import cache_folder, digest_of
from inlay.cluster.tracking import tracking_uri
from inlay.cluster.tracking_model import FOLDER
from inlay.cluster.tracking_send import prepare_environment
from inlay.cluster.urls import redacted


class RegistryError(Exception):
    """A version cannot be had; the text goes on where its name has been said."""


@dataclass(frozen=True)
class Version:
    """One version of a registered model, in the registry of an MLflow store."""

    tracking: str
    name: str
    number: str
    made: int
    """When, in milliseconds since 1970: numbers begin anew where a model is deleted and made again."""


def find_version(tracking: str | None, name: str, alias: str | None, number: str | None) -> Version:
    """Return the version that an alias, or else a number, means now; raises RegistryError."""
    uri = tracking_uri(tracking)
    file = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not file.exists():
        raise RegistryError(f"cannot be looked up: there is no {file}; set tracking.uri or MLFLOW_TRACKING_URI")
    prepare_environment()
    from mlflow import MlflowClient

    try:
        client = MlflowClient(tracking_uri=uri)
        known = _registered(client, name)
        if known is None:
            raise RegistryError(f"is not there: {redacted(uri)} has no registered model `{name}`")
        if alias is not None and alias not in known.aliases:
            there = ", ".join(sorted(known.aliases)) or "none"
            raise RegistryError(f"is not there: the model `{name}` has no alias `{alias}`; its aliases are {there}")
        found = client.get_model_version(name, str(number if alias is None else known.aliases[alias]))
        return Version(uri, name, str(found.version), int(found.creation_timestamp))
    except RegistryError:
        raise
    except Exception as error:  # databases and their drivers raise what they like
        raise RegistryError(f"cannot be looked up in {redacted(uri)}: {_first_sentence(error)}") from None


def fetch_version(version: Version) -> Path:
    """Return the folder of a version's child, downloaded once by an account; raises RegistryError."""
    folder = (
        cache_folder() / "registered" / digest_of([version.tracking, version.name, version.number, version.made])[:32]
    )
    if folder.is_dir():
        return folder
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as part:
        try:
            # Not `models:/`, which is looked up in the store that the process has as its own. What a registry holds
            # is not written by us: only the folder is taken, and nothing of it is run.
            place = MlflowClient(version.tracking).get_model_version_download_uri(version.name, version.number)
            found = Path(
                download_artifacts(f"{place}/artifacts/{FOLDER}", dst_path=part, tracking_uri=version.tracking)
            )
        except Exception as error:  # so do the stores of artifacts
            raise RegistryError(f"cannot be downloaded, or is no child: {_first_sentence(error)}") from None
        if not (found / "config.json").is_file():
            raise RegistryError(f"is no child that inlay put there: it has no artifacts/{FOLDER}/config.json")
        if not any(found.glob("*.safetensors")):
            raise RegistryError(
                "has no weights in MLflow's store, since they were too large when it was recorded; export it from its "
                "workspace, or search with tracking.register, which stores them"
            )
        try:
            os.replace(found, folder)
        except OSError:
            if not folder.is_dir():  # another process was first
                raise
    return folder


def _registered(client: Any, name: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _first_sentence(error: Exception) -> str:
    return redacted(" ".join(str(error).split())[:300])
