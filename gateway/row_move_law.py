"""Whether a row may be given another RegionCode: decided here, in pure code, by each side for itself.

Whoever asks must be allowed to write under both RegionCodes. And the row is handed to the IDC of its new home while its
old law still holds, so that IDC must be allowed to read it by that law, whole: nothing may be withheld from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gateway.judge import access_denied
from gateway.values import check_request_id, decode_key
from policy.errors import AccessDenied, InvalidInput, InvalidValue, TableTooOld, UnknownRegion
from policy.model import Operation

if TYPE_CHECKING:
    from gateway.judge import Asking
    from policy.compile import Policy
    from policy.model import AccessDecision, Dataset
    from regiongate.v1 import row_service_pb2


class RowMove(NamedTuple):
    """A checked request to move one row."""

    dataset: Dataset
    region_code: str
    key: str | int
    to_region_code: str
    if_version: int | None
    request_id: str


class MoveDecisions(NamedTuple):
    """What the policy says of a move that it allows."""

    leave: AccessDecision
    """On writing under the old RegionCode."""
    come: AccessDecision
    """On writing under the new one."""
    hand_over: AccessDecision
    """On the new home's IDC reading the row by its old law."""


def parse_move(policy: Policy, request: row_service_pb2.MoveRowRequest) -> RowMove:
    """The checked request; raises `InvalidInput` that names the field, or `UnknownDataset`."""
    dataset = policy.dataset(request.dataset)
    key = decode_key(dataset, request.key)
    for field_name in ("region_code", "to_region_code"):
        _check_region(policy, getattr(request, field_name), field_name)
    if request.to_region_code == request.region_code:
        raise InvalidValue("the row has this RegionCode already", field_name="to_region_code")
    if_version = request.if_version if request.HasField("if_version") else None
    if if_version is not None and if_version <= 0:
        raise InvalidValue("the if_version of a move is the row's version, above 0", field_name="if_version")
    if not request.request_id:
        # Without one a lost answer could not be told from a move that never was.
        raise InvalidInput("a move needs a request_id", field_name="request_id")
    request_id = check_request_id(request.request_id)
    return RowMove(dataset, request.region_code, key, request.to_region_code, if_version, request_id)


def _check_region(policy: Policy, region_code: str, field_name: str) -> None:
    try:
        policy.residency(region_code)
    except UnknownRegion as error:
        error.field_name = field_name
        raise


def judge_move(
    policy: Policy, move: RowMove, asking: Asking, old_idc: str, new_idc: str, *, is_fresh: bool
) -> MoveDecisions:
    """The decisions on a move between the homes that these IDCs own.

    Raises:
        AccessDenied: one of them says no, or withholds something of the row.
        TableTooOld: a border is crossed, and this gateway cannot know the current law (law L6).
    """
    if not is_fresh and not asking.is_home(policy, old_idc, new_idc):
        raise TableTooOld(
            "this gateway has lost touch with the policy store and moves rows inside its own jurisdiction only"
        )
    name, purpose = move.dataset.name, asking.purpose
    leave = policy.decide(name, move.region_code, asking.askers, Operation.WRITE, purpose)
    come = policy.decide(name, move.to_region_code, asking.askers, Operation.WRITE, purpose)
    hand_over = policy.decide(name, move.region_code, (new_idc,), Operation.READ, purpose)
    for decision in (leave, come, hand_over):
        if not decision.allowed:
            raise access_denied(decision)
    if hand_over.withheld:
        raise AccessDenied(
            f"rule {hand_over.rule} withholds {', '.join(sorted(hand_over.withheld))} from {new_idc}, "
            "so the row cannot go there whole",
            rule=hand_over.rule,
            policy_revision=hand_over.policy_revision,
        )
    return MoveDecisions(leave, come, hand_over)
