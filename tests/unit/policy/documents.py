"""A small policy that stands, and ways to bend it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policy.compile import Policy, compile_policy
from policy.errors import PolicyRejected
from policy.loading import load_policy
from policy.records import ShardRecord
from policy.table import RoutingTable

if TYPE_CHECKING:
    from policy.findings import Finding

POLICY = """\
version: 1
idcs:
  sha: {jurisdiction: CN}
  fra: {jurisdiction: EU}
  ams: {jurisdiction: EU}
  sin: {jurisdiction: SG}
groups:
  EU: [AT, DE, NORDIC]
  NORDIC: [FI, NO, SE]
residency:
  - {name: china, regions: [CN], jurisdictions: [CN], idcs: {sha: 100}}
  - {name: europe, regions: [EU], jurisdictions: [EU], idcs: {fra: 60, ams: 40}, shards: 8}
  - {name: asia, regions: [SG, MY], jurisdictions: [SG], idcs: {sin: 100}}
access:
  - {name: eu-support, regions: [EU], from: [SG], operations: [read], purposes: [support], withhold: [personal]}
  - {name: asia-billing, regions: [SG], from: [EU, CN], operations: [read, write], purposes: ['*'], datasets: [orders]}
datasets:
  customers:
    key: string
    columns:
      name: {type: string, class: personal}
      spend: {type: int64}
  orders:
    key: int64
    columns:
      total: {type: decimal}
expect:
  - {region: DE, from: SG, operation: read, purpose: support, decision: allow, withheld: [name]}
  - {region: CN, never_stored_in: [EU, SG]}
"""


def bend(*changes: tuple[str, str], text: str = POLICY) -> str:
    """The policy with some of its text replaced; each part must be there."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    return text


def compiled(text: str = POLICY, revision: int = 7) -> Policy:
    """The policy, compiled."""
    return compile_policy(load_policy(text).document, revision)


def findings_of(text: str) -> tuple[Finding, ...]:
    """All findings, whether the policy stands or not."""
    try:
        return load_policy(text, "p.yaml").findings
    except PolicyRejected as rejected:
        return rejected.findings


def codes_of(text: str, severity: str = "error") -> list[str]:
    """Codes of the findings of one severity."""
    return [finding.code for finding in findings_of(text) if finding.severity == severity]


def serving(idc: str, epoch: int = 1, phase: str = "serving") -> ShardRecord:
    """The record of a shard."""
    return ShardRecord(idc, epoch, phase, 7)


def full_table(policy: Policy, idc: str = "fra") -> RoutingTable:
    """A table where one IDC owns every shard."""
    shards = [(code, n, serving(idc)) for code, rule in policy.regions.items() for n in range(rule.shards)]
    return RoutingTable.build(policy, shards, 10)
