"""Who may give a row another RegionCode: decided by the policy alone."""

from __future__ import annotations

import pytest

from gateway.judge import Asking
from gateway.move_checks import check_residency
from gateway.row_move_law import RowMove, judge_move
from policy.errors import AccessDenied, TableTooOld
from tests.support import routing
from tests.support.row_move_site import POLICY

LAW = routing.policy(POLICY)


def judge(region: str, to: str, *askers: str, purpose: str = "relocation", idc: str = "fra", is_fresh: bool = True):
    homes = {"DE": "fra", "FR": "fra", "SG": "sin", "CN": "sha"}
    move = RowMove(LAW.datasets["customers"], region, "k", to, None, "r")
    asking = Asking(idc, askers or (idc,), purpose)
    return judge_move(LAW, move, asking, homes[region], homes[to], is_fresh=is_fresh)


def test_a_move_inside_one_jurisdiction_needs_no_purpose_and_no_fresh_law() -> None:
    decisions = judge("DE", "FR", purpose="", is_fresh=False)
    assert {decision.rule for decision in decisions} == {"europe"}


def test_law_l6_a_move_that_crosses_a_border_needs_a_fresh_law() -> None:
    assert [decision.rule for decision in judge("DE", "SG")] == ["europe", "asia-entry", "relocation"]
    for arguments in (("DE", "SG"), ("DE", "FR", "sin"), ("DE", "FR", "fra", "sin")):
        judge(*arguments)
        with pytest.raises(TableTooOld):
            judge(*arguments, is_fresh=False)


@pytest.mark.parametrize(
    ("arguments", "purpose", "rule"),
    [
        (("DE", "SG", "sin"), "entry", "europe"),
        (("DE", "SG"), "", "asia"),
        (("DE", "SG"), "entry", "europe"),
        (("DE", "SG"), "support", "support"),
        (("DE", "SG", "fra", "sha"), "relocation", "europe"),
        (("DE", "CN"), "relocation", "china"),
        (("CN", "DE", "sha"), "relocation", "europe"),
    ],
)
def test_every_asker_and_the_new_home_must_be_allowed(arguments: tuple[str, ...], purpose: str, rule: str) -> None:
    with pytest.raises(AccessDenied) as denied:
        judge(*arguments, purpose=purpose)
    assert (denied.value.rule, denied.value.policy_revision) == (rule, 1)


def test_law_l1_a_row_may_only_arrive_where_its_residency_rule_permits_it() -> None:
    check_residency(LAW, "SG", "sin")
    for region_code, idc in (("SG", "fra"), ("CN", "sin"), ("DE", "nowhere")):
        with pytest.raises(AccessDenied):
            check_residency(LAW, region_code, idc)
