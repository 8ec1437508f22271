"""The row store's side of moving a shard: one IDC's rows go out, come in, and are deleted.

`Mover` is the face; `model` has what goes in and out. Each step is one statement on the shard's fence (`fence_steps`);
rows travel in slices (`exporting`, `importing`), are compared by digests (`digest`), and go for good (`purging`).
"""

from rowstore.moving.model import (
    End,
    ExportPart,
    Head,
    ImportProgress,
    MoveStep,
    PurgeProof,
    ShardDigest,
    ShardSize,
    SliceEnd,
    SliceStart,
    TableLayout,
)
from rowstore.moving.mover import Mover

__all__ = [
    "End",
    "ExportPart",
    "Head",
    "ImportProgress",
    "MoveStep",
    "Mover",
    "PurgeProof",
    "ShardDigest",
    "ShardSize",
    "SliceEnd",
    "SliceStart",
    "TableLayout",
]
