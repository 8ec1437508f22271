"""The demo's second half: a country changes its law, and its rows follow while clients go on.

The United Kingdom leaves the rule of the EU: one edit of the policy, its plan, the apply under load, the trace of one
shard's way, and the proof that nothing stayed behind.
"""

from __future__ import annotations

import difflib
import secrets
from typing import TYPE_CHECKING

import regiongate
from regiongate.demo import counting, placement, show, traces
from regiongate.demo.command import run_command
from regiongate.demo.crossings import Crossing, pick_keys, try_crossing
from regiongate.demo.places import DATASET
from regiongate.demo.remains import count_everywhere
from regiongate.demo.rollout import apply_and_follow, by_region
from regiongate.demo.stack import new_policy_file, policy_file, shown
from regiongate.demo.state import ENTRY_IDC, NEW_IDC
from regiongate.demo.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from regiongate.demo.rollout import Outcome
    from regiongate.demo.state import Demo
    from regiongate.demo.traffic import Seen
    from runtime.telemetry.spans import SpanRecord

MESSAGE = "the United Kingdom has a law of its own"
TRACED = "GB", 0
"""The shard whose way is shown."""
REVOKED = Crossing("sin", "GB", "statistics", "denied")
"""A read that the old law allowed, with columns withheld."""
GRANTED = Crossing("fra", "GB", "", "allowed")
LEAST_PROCESSES = 3
"""Of the traced move: the controller, and the gateways of source and target."""


async def show_edit(demo: Demo) -> None:
    """Shows what the new policy says otherwise, and what applying it would do."""
    show.section(5, "A country changes its law: the United Kingdom's rows are to leave the EU for London. The edit:")
    old, new = policy_file().read_text(encoding="utf-8"), new_policy_file().read_text(encoding="utf-8")
    show.diff(edit_of(old, new))
    show.line("")
    show.line("What it would do, before anything is done:")
    code, _ = await run_command(["policy", "plan", shown(new_policy_file())], demo.entry(ENTRY_IDC))
    if code:
        demo.faults.append(f"the plan of the new law ended with {code}")


def edit_of(old: str, new: str) -> list[str]:
    """The changed lines, without comments and empty lines."""
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm="")
    changed = [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    return [line for line in changed if line[1:].strip() and not line[1:].lstrip().startswith("#")]


async def apply_under_load(demo: Demo) -> None:
    """Applies the new law while clients read and write, and shows what the moves were and what the clients saw."""
    show.section(6, "Apply it, while clients go on reading and writing rows of GB, DE, JP and CN")
    entries = {idc: entry.gateway for idc, entry in demo.stack.idcs.items()}
    traceparent = _traceparent(demo)
    traffic = Traffic(demo.places)
    before = await _outcome_of(demo, REVOKED)
    async with traffic.running(entries) as seen:
        document = new_policy_file().read_text(encoding="utf-8")
        outcome = await apply_and_follow(
            demo.entry(ENTRY_IDC), document, shown(new_policy_file()), MESSAGE, traceparent
        )
    demo.policy = demo.new_policy
    _judge_rollout(demo, outcome)
    _judge_clients(demo, seen, await traffic.lost(entries))
    demo.put_back = await traffic.put_back(entries)
    for crossing in (GRANTED, REVOKED):
        outcome_after = await _outcome_of(demo, crossing)
        if outcome_after != crossing.expected:
            demo.faults.append(f"after the change a read of GB from {crossing.entry_idc} is {outcome_after}")
    show.line(f"Reading GB in Singapore for statistics: {before} under revision 1, {REVOKED.expected} under revision 2")


def _traceparent(demo: Demo) -> str:
    demo.rollout_trace = secrets.token_hex(16)
    return f"00-{demo.rollout_trace}-{secrets.token_hex(8)}-01"


def _judge_rollout(demo: Demo, outcome: Outcome) -> None:
    moves = list(outcome.moves.values())
    show.line(f"revision {outcome.revision} is the law: acknowledged by {outcome.acknowledged} gateways")
    show.moves(by_region(moves))
    unfinished = sum(move.phase != "done" for move in moves)
    if outcome.state != "done" or unfinished or not moves:
        demo.faults.append(
            f"the rollout is {outcome.state}, {unfinished} of {len(moves)} moves unfinished: {outcome.note}"
        )
        return
    rows = sum(move.rows_copied for move in moves)
    stalls = sorted(move.stall_ms for move in moves)
    demo.facts["shards moved to lon"] = f"{len(moves)}, with {rows:,} rows, in {outcome.seconds:.1f} s"
    demo.facts["writes of a shard were held for"] = (
        f"{stalls[len(stalls) // 2]:.0f} ms (median), {stalls[-1]:.0f} ms (longest)"
    )


def _judge_clients(demo: Demo, seen: Seen, lost: int) -> None:
    longest = seen.longest_write["GB"] * 1000
    errors = ", ".join(f"{number} {reason}" for reason, number in seen.errors.items()) or "none"
    show.line(
        f"Clients made {seen.calls:,} calls meanwhile ({seen.reads['GB']:,} reads and {seen.writes['GB']:,} writes of"
        f" GB); errors: {errors}; the slowest write of GB took {longest:.0f} ms"
    )
    demo.facts["calls during the moves"] = f"{seen.calls:,}; errors: {errors}"
    demo.facts["acknowledged writes lost, stale reads"] = f"{lost or 'none'}, {seen.stale or 'none'}"
    if seen.errors:
        demo.faults.append(f"clients saw errors: {errors}")
    if lost or seen.stale:
        demo.faults.append(f"{lost} acknowledged writes are lost, {seen.stale} reads were stale")


async def _outcome_of(demo: Demo, crossing: Crossing) -> str:
    async with regiongate.connect(demo.entry(crossing.entry_idc)) as client:
        return (await try_crossing(client, crossing, pick_keys(demo.places))).outcome


async def show_move(demo: Demo) -> None:
    """Draws the way of one shard, as the controller and the two gateways have recorded it."""
    region_code, shard = TRACED
    show.section(
        7, f"The way of shard {region_code}/{shard}, from `apply` to the last row deleted in the EU, as a trace"
    )

    def is_complete(spans: Sequence[SpanRecord]) -> bool:
        found = traces.of_shard(spans, region_code, shard)
        return len(traces.processes(found)) > LEAST_PROCESSES and any(span.name == "move.purging" for span in found)

    spans = await traces.wait_for_spans(demo.data_dir, demo.rollout_trace, is_complete)
    found = traces.of_shard(spans, region_code, shard)
    traces.show_spans(demo.rollout_trace, found)
    processes = traces.processes(found)
    if len(processes) < LEAST_PROCESSES or NEW_IDC not in {span.idc for span in found}:
        demo.faults.append(f"the trace of the move reaches over {', '.join(processes) or 'nothing'} only")
    demo.facts["trace of a move"] = f"{len(found)} spans, of {', '.join(processes)}"


async def prove_departure(demo: Demo) -> None:
    """Reads every database directly: no row of the United Kingdom is left anywhere but in London."""
    show.section(8, "Read each database directly again: did any row stay behind?")
    codes = sorted(code for code, it in demo.policy.regions.items() if NEW_IDC in it.weights)
    counts = await count_everywhere(demo.databases, codes)
    show.remains(counts, codes)
    behind = {idc: sum(tables.values()) for idc, tables in counts.items() if tables and idc != NEW_IDC}
    demo.faults += [f"{rows} rows of {', '.join(codes)} are left in {idc}" for idc, rows in behind.items()]
    found = placement.judge(demo.policy, demo.places, await placement.read_databases(demo.databases, DATASET))
    demo.faults += found.wrong
    demo.facts["rows left behind in the EU"] = f"{sum(behind.values()):,}" if behind else "none, in any table"
    demo.facts["rows found after the change"] = (
        f"{found.total:,}, {len(found.wrong) or 'none'} misplaced, missing or doubled"
    )


async def verify_audit(demo: Demo) -> None:
    """Checks the audit trail of all that has happened."""
    show.section(10, "The audit trail of it: every link is checked")
    code, output = await run_command(["audit", "verify"], demo.entry(ENTRY_IDC))
    if code:
        demo.faults.append("the audit trail is not sound")
    demo.facts["audit trail"] = output.partition("\n")[0].removeprefix("entries: ")


STEPS = (show_edit, apply_under_load, show_move, prove_departure, counting.show_job, verify_audit)
