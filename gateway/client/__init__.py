"""The Python SDK: a client that goes straight to the owner. It imports nothing of the server's side."""

from gateway.client.client import Client
from gateway.client.model import (
    ClientSettings,
    DatasetColumns,
    Decision,
    Delete,
    MoveReceipt,
    Page,
    Put,
    Receipt,
    RouteChange,
    Row,
    ShardOwner,
    TlsFiles,
)
from gateway.client.opening import connect
from gateway.client.ownership import Ownership, ShardSet

__all__ = [
    "Client",
    "ClientSettings",
    "DatasetColumns",
    "Decision",
    "Delete",
    "MoveReceipt",
    "Ownership",
    "Page",
    "Put",
    "Receipt",
    "RouteChange",
    "Row",
    "ShardOwner",
    "ShardSet",
    "TlsFiles",
    "connect",
]
