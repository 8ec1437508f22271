"""What is recorded of a policy revision, and the hash by which a stored revision is compared with its record.

The hash covers what `GetPolicy` answers, so that everybody can compute it who can read the policy: the document and the
words about it, and by `rules_hash` the form of the rules that processes decide by.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from policy.audit.diff import bounded_diff
from policy.audit.entry import Fact, digest, time_text

if TYPE_CHECKING:
    from policy.records import PolicyRevision


def rules_hash(record: PolicyRevision) -> str:
    """Hash of the rules as processes read them."""
    return digest(record.rules)


def revision_hash(record: PolicyRevision, hash_of_rules: str) -> str:
    """Hash of a revision; raises `ValueError` when its time is none."""
    return digest(
        {
            "revision": record.revision,
            "parent": record.parent,
            "document": record.document,
            "author": record.author,
            "message": record.message,
            "create_time": time_text(datetime.fromisoformat(record.create_time)) if record.create_time else "",
            "rollout": record.rollout,
            "rules_hash": hash_of_rules,
        }
    )


def policy_fact(record: PolicyRevision, parent: PolicyRevision | None) -> Fact:
    """That a revision became the current one, and how it differs from its parent."""
    before, name = (parent.document, f"revision {parent.revision}") if parent else ("", "nothing")
    diff, is_cut = bounded_diff(before, record.document, name, f"revision {record.revision}")
    return Fact(
        "policy",
        {
            "revision": record.revision,
            "parent": record.parent,
            "author": record.author,
            "message": record.message,
            "rollout": record.rollout,
            "revision_hash": revision_hash(record, rules_hash(record)),
            "diff": diff,
            "diff_is_cut": is_cut,
        },
    )
