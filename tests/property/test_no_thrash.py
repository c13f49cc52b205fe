"""Nobody is preempted for ever: random teams, priorities and drains, and services whose load oscillates.

Every preemption has a beneficiary that then starts, so what a job can suffer is bounded by how often
others come. Once nobody comes any more, the cell rests.
"""

from __future__ import annotations

from collections import Counter

from cell_harness import Cell, job_spec, service_spec
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tidecell.structs.job import Band, Cause, JobSpec, Preemption, Scaling
from tidecell.structs.messages import DesiredProposed, JobSubmitted, PolicyProposed, TaskNoticed
from tidecell.structs.tenant import Policy, Quota, Team

TEAMS = ("red", "blue", "green")
ROUNDS = 40


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    def quota() -> Quota:
        return Quota(
            {"cpu": 1000 * draw(st.integers(0, 4))},
            borrow=draw(st.sampled_from([None, None, {"cpu": 1000}])),
            lend=draw(st.sampled_from([None, None, {"cpu": 1000}])),
        )

    teams = [Team(n, {"batch": quota(), "production": Quota()}, cohort="sea") for n in TEAMS]
    return Policy(tuple(teams), patience_s=draw(st.sampled_from([0.0, 0.0, 3.0])))


@st.composite
def specs(draw: st.DrawFn, name: str) -> JobSpec:
    low = draw(st.integers(1, 3))
    return job_spec(
        name,
        cpu=draw(st.sampled_from([1, 1, 2])),
        replicas=(low, low + draw(st.integers(0, 3))),
        band=draw(st.sampled_from([Band.BEST_EFFORT, Band.BATCH, Band.BATCH, Band.BATCH, Band.PRODUCTION])),
        order=draw(st.integers(-3, 3)),
        team=draw(st.sampled_from(TEAMS)),
        preemption=draw(st.sampled_from([Preemption.ANY, Preemption.ANY, Preemption.ABOVE_MIN])),
    )


def let_go(cell: Cell, slow: set[str], number: int) -> None:
    """Time passes: what was started runs, and of what was told to leave the quick ones do."""
    cell.after(2.0).up()
    for ref, process in sorted(cell.engine.processes.items()):
        quick = process.command.spec.name not in slow or number % 4 == 3
        if process.stop_by_s is not None and quick:
            cell.down(ref)


def preempted(cell: Cell) -> Counter[tuple[str, int]]:
    return Counter((e.ref.uid, e.ref.index) for e in cell.story(TaskNoticed) if e.cause is Cause.PREEMPT)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data(), policies(), st.integers(4, 8))
def test_preemptions_are_bounded_and_the_cell_comes_to_rest(data: st.DataObject, policy: Policy, count: int):
    cell = Cell()
    cell.machine("a", cpu=6).machine("b", cpu=4)
    cell.send(PolicyProposed(policy))
    tide = service_spec("tide", replicas=(1, 4), team="red", scaling=Scaling())
    cell.send(JobSubmitted(tide))
    num_units, swings = 4, 0
    slow = {f"j{n}" for n in range(count) if data.draw(st.booleans())}
    for number in range(count):
        spec = data.draw(specs(f"j{number}"))
        cell.send(JobSubmitted(spec))
        num_units += 1 if not spec.is_service else spec.replicas.max
        if data.draw(st.booleans()):
            cell.send(DesiredProposed(cell.job("tide").uid, data.draw(st.integers(1, 4)), "load"))
            swings += 4
        let_go(cell, slow, number)
    for number in range(ROUNDS):
        let_go(cell, slow, number)
    before = preempted(cell)
    for number in range(ROUNDS):
        let_go(cell, slow, number)
    assert preempted(cell) == before, "nobody comes, and somebody is still told to leave"
    most = max(before.values(), default=0)
    event(f"at most {most} preemptions of a task")
    takers = {e.by for e in cell.story(TaskNoticed) if e.by}
    event("took its own quota back" if takers - {"tide"} else "no taking back")
    assert most <= num_units + swings
