"""The policy that the machine decides by: a document with its groups expanded and its decisions remembered.

A `Policy` is immutable to its users: it decides the same for ever, and says which revision it is (laws L6, L7). The
memory of decisions inside is bounded, and keyed only by words that the policy itself contains, whatever callers send.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from policy.access import NO_JURISDICTION, AccessQuestion, CompiledAccessRule, judge, unite
from policy.document import REGION_CODE
from policy.errors import PolicyRejected, UnknownDataset, UnknownRegion
from policy.findings import Finding, Severity
from policy.groups import Groups
from policy.model import AccessDecision, Column, Dataset, Residency

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policy.document import AccessRule, PolicyDocument
    from policy.model import Operation

MAX_REMEMBERED: Final = 100_000
UNNAMED_PURPOSE: Final = ""
"""Stands for no purpose and for every purpose that no rule names: they are decided alike."""


class Policy:
    """One policy revision, ready to decide."""

    __slots__ = ("_purposes", "_remembered", "datasets", "document", "idcs", "regions", "revision", "rules")

    def __init__(
        self,
        document: PolicyDocument,
        revision: int,
        regions: Mapping[str, Residency],
        datasets: Mapping[str, Dataset],
        rules: tuple[CompiledAccessRule, ...],
    ) -> None:
        self.document = document
        self.revision = revision
        self.idcs: Mapping[str, str] = MappingProxyType({idc: it.jurisdiction for idc, it in document.idcs.items()})
        """IDC -> its jurisdiction."""
        self.regions = regions
        self.datasets = datasets
        self.rules = rules
        """Access rules in the document's order."""
        self._purposes = frozenset(purpose for rule in rules for purpose in rule.purposes)
        self._remembered: dict[tuple[str, str, tuple[str, ...], Operation, str], AccessDecision] = {}

    def decide(
        self, dataset: str, region_code: str, askers: tuple[str, ...], operation: Operation, purpose: str
    ) -> AccessDecision:
        """Whether the IDCs `askers` may perform the operation; each of them must be allowed.

        Raises:
            UnknownRegion, UnknownDataset: the policy does not have it.
        """
        decision = self._remembered.get((dataset, region_code, askers, operation, purpose))
        return decision or self._decide_anew(dataset, region_code, askers, operation, purpose)

    def decide_for_jurisdiction(
        self, dataset: str, region_code: str, jurisdiction: str, operation: Operation, purpose: str
    ) -> AccessDecision:
        """The same for one asker that is known by its jurisdiction.

        Raises:
            UnknownRegion, UnknownDataset: the policy does not have it.
        """
        residency, columns = self.residency(region_code), self.dataset(dataset)
        question = AccessQuestion(dataset, region_code, jurisdiction, operation, purpose)
        return judge(self.rules, residency, columns, question, self.revision)

    @property
    def purposes(self) -> frozenset[str]:
        """Every purpose that an access rule names."""
        return self._purposes

    def residency(self, region_code: str) -> Residency:
        """The residency rule as it holds for the RegionCode; raises `UnknownRegion`."""
        try:
            return self.regions[region_code]
        except KeyError:
            raise unknown_region(region_code) from None

    def dataset(self, name: str) -> Dataset:
        """The dataset; raises `UnknownDataset`."""
        try:
            return self.datasets[name]
        except KeyError:
            # Not named in the message: a caller that mixes up its arguments may have sent a key here (law L1).
            raise UnknownDataset("the policy has no dataset of this name", field_name="dataset") from None

    def _decide_anew(
        self, dataset: str, region_code: str, askers: tuple[str, ...], operation: Operation, purpose: str
    ) -> AccessDecision:
        if purpose not in self._purposes:
            purpose = UNNAMED_PURPOSE
        known = (dataset, region_code, askers, operation, purpose)
        if decision := self._remembered.get(known):
            return decision
        jurisdictions = [self.idcs.get(idc, NO_JURISDICTION) for idc in askers] or [NO_JURISDICTION]
        decision = unite(
            self.decide_for_jurisdiction(dataset, region_code, jurisdiction, operation, purpose)
            for jurisdiction in jurisdictions
        )
        assert decision is not None, "there is at least one jurisdiction"  # noqa: S101
        if NO_JURISDICTION not in jurisdictions and len(askers) <= 2:
            if len(self._remembered) >= MAX_REMEMBERED:
                self._remembered.clear()
            self._remembered[known] = decision
        return decision


def unknown_region(region_code: str) -> UnknownRegion:
    """The error for a RegionCode that no residency rule covers."""
    if REGION_CODE.fullmatch(region_code):
        return UnknownRegion(f"no residency rule covers RegionCode {region_code}", field_name="region_code")
    # What is not a RegionCode may be a key in the wrong place: it is not repeated (law L1).
    return UnknownRegion("region_code is missing or not a RegionCode such as DE or CA-QC", field_name="region_code")


def compile_policy(document: PolicyDocument, revision: int) -> Policy:
    """Compiles a document that `load_policy` has accepted.

    Raises:
        PolicyRejected: it contradicts itself after all.
    """
    try:
        groups = Groups(document.groups)
        datasets = _datasets(document)
        regions = _residencies(document, groups)
        rules = tuple(_access_rule(rule, groups, datasets) for rule in document.access)
    except ValueError as error:
        finding = Finding(Severity.ERROR, "CONTRADICTION", str(error))
        raise PolicyRejected(str(error), findings=(finding,)) from error
    return Policy(document, revision, MappingProxyType(regions), MappingProxyType(datasets), rules)


def _residencies(document: PolicyDocument, groups: Groups) -> dict[str, Residency]:
    regions: dict[str, Residency] = {}
    for rule in document.residency:
        jurisdictions = frozenset(rule.jurisdictions)
        weights = MappingProxyType({idc: weight for idc, weight in rule.idcs.items() if weight})
        for idc in weights:
            if idc not in document.idcs or document.idcs[idc].jurisdiction not in jurisdictions:
                raise ValueError(f"residency rule {rule.name} may not store in {idc}")
        if not weights:
            raise ValueError(f"residency rule {rule.name} has no IDC with a weight")
        for code in groups.expand(rule.regions):
            if code in regions:
                raise ValueError(f"RegionCode {code} is under {regions[code].rule} and {rule.name}")
            regions[code] = Residency(code, rule.name, jurisdictions, weights, rule.shards, rule.transit == "allow")
    return regions


def _datasets(document: PolicyDocument) -> dict[str, Dataset]:
    return {
        name: Dataset(
            name,
            entry.key,
            MappingProxyType({c: Column(c, it.type, it.data_class or "") for c, it in entry.columns.items()}),
        )
        for name, entry in document.datasets.items()
    }


def _access_rule(rule: AccessRule, groups: Groups, datasets: Mapping[str, Dataset]) -> CompiledAccessRule:
    classes = frozenset(rule.withhold)
    withheld = {
        name: frozenset(column.name for column in dataset.columns.values() if column.data_class in classes)
        for name, dataset in datasets.items()
    }
    return CompiledAccessRule(
        rule.name,
        frozenset(groups.expand(rule.regions)),
        frozenset(rule.askers),
        frozenset(rule.operations),
        frozenset(rule.purposes),
        None if rule.datasets is None else frozenset(rule.datasets),
        MappingProxyType({name: columns for name, columns in withheld.items() if columns}),
    )
