"""Ray, stores, MLflow tracking: everything that crosses processes and machines."""

from inlay.cluster.capacity import usable_cpus
from inlay.cluster.errors import ClusterError, ConnectError, LockedError, PieceError, StoreError
from inlay.cluster.events import PieceEvent
from inlay.cluster.fanout import run_pieces
from inlay.cluster.lock import Owner, lock_owner, locked
from inlay.cluster.pieces import (
    Piece,
    PieceContext,
    PieceOutput,
    Record,
    Resources,
    parse_record,
    piece_key,
    piece_seed,
    read_record,
)
from inlay.cluster.records import kept_records
from inlay.cluster.runtime import Cluster, ClusterSettings, connect
from inlay.cluster.store import Store, digest_of, json_bytes

__all__ = [
    "Cluster",
    "ClusterError",
    "ClusterSettings",
    "ConnectError",
    "LockedError",
    "Owner",
    "Piece",
    "PieceContext",
    "PieceError",
    "PieceEvent",
    "PieceOutput",
    "Record",
    "Resources",
    "Store",
    "StoreError",
    "connect",
    "digest_of",
    "json_bytes",
    "kept_records",
    "lock_owner",
    "locked",
    "parse_record",
    "piece_key",
    "piece_seed",
    "read_record",
    "run_pieces",
    "usable_cpus",
]
