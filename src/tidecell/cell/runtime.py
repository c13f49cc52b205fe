"""The only loop: input, step, journal, apply, command. Synchronous, so that a simulator can drive it.

``tick`` takes what arrived, decides, writes one batch to the journal, and only then answers and
issues commands. The clock is an argument. Events are applied while deciding (a later input must see
what an earlier one did); if the journal then refuses the batch, the state is rebuilt from the journal,
so memory never runs ahead of what is durable.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tidecell.cell.admission import blocking
from tidecell.cell.invariants import check_event, check_state
from tidecell.cell.log import EventLog
from tidecell.cell.picture import Picture, check_picture
from tidecell.cell.reconcile import check_glance, is_at_rest, reconcile
from tidecell.cell.state import CellState, Job, apply
from tidecell.cell.step import Decision, step
from tidecell.scheduler.schedule import schedule
from tidecell.scheduler.snapshot import PlanTrace
from tidecell.structs.errors import InvariantError, JournalError, TidecellError
from tidecell.structs.messages import Command, Event, Input, MachineSeen, PlanProposed, Tick

MAX_FOLLOW_UPS = 64  # reconcile must come to rest; more than this is a defect


@dataclass
class Outcome:
    """What a tick led to.

    Attributes:
        events: All events of the tick, in order.
        commands: Effects to ask the engines for.
        errors: One entry per input: the error to answer with, or None.
    """

    events: list[Event] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    errors: list[TidecellError | None] = field(default_factory=list)


class Runtime:
    """Owns the state and the journal of one cell.

    Attributes:
        state: The cell as it is; read by others, changed here alone.
        trace: Why what is pending is pending, as of the last scheduling pass.
    """

    def __init__(self, journal: EventLog, seed: int = 0, debug: bool = False) -> None:
        self.journal = journal
        self.state: CellState = journal.replay()
        self.trace = PlanTrace()
        self.listeners: list[Callable[[Sequence[Event], float], None]] = []
        self._seed = seed
        self._debug = debug
        self._dirty = True
        self._picture: Picture | None = None
        self._pictured: CellState | None = None

    def tick(self, inputs: Sequence[Input], now_s: float) -> Outcome:
        """Decide what the inputs mean, make it durable, and return answers and commands.

        Args:
            inputs: What arrived, in order of arrival.
            now_s: Seconds since the epoch; never less than at the tick before.

        Raises:
            JournalError: Nothing of this tick was accepted; the state is as it was.
        """
        outcome = Outcome()
        try:
            for message in inputs:
                outcome.errors.append(self._decide(message, now_s, outcome))
            if self._dirty or any(isinstance(m, Tick) for m in inputs):  # time alone ends a back-off
                self._plan(now_s, outcome)
            self.journal.append(outcome.events, now_s)
        except Exception:  # whatever it was, memory must not run ahead of what is durable
            self.state = self.journal.replay()
            self._dirty = True
            raise
        if self._debug and outcome.events:
            check_state(self.state)
        for listener in self.listeners:
            listener(outcome.events, now_s)
        if self.journal.snapshot_due():
            # The tick is durable without it; to raise here would lose its commands. It is tried again.
            with contextlib.suppress(JournalError):
                self.journal.write_snapshot(self.state)
        return outcome

    def _decide(self, message: Input, now_s: float, outcome: Outcome) -> TidecellError | None:
        try:
            decision = step(self.state, message, now_s)
        except InvariantError:
            raise
        except TidecellError as error:
            return error
        if not isinstance(message, Tick):
            self._dirty = self._dirty or bool(decision.events) or isinstance(message, MachineSeen)
        self._take(decision, now_s, outcome)
        self._settle(decision.touched, now_s, outcome)
        return None

    def _take(self, decision: Decision, now_s: float, outcome: Outcome) -> None:
        for event in decision.events:
            if self._debug:
                check_event(self.state, event, now_s)
            apply(self.state, event, now_s)
        outcome.events += decision.events
        outcome.commands += decision.commands

    def _settle(self, touched: set[str] | None, now_s: float, outcome: Outcome) -> None:
        """Reconcile the touched jobs, and what they touch, until nothing follows."""
        if touched is not None and len(touched) == 1 and not self._debug:  # most are about one job at rest
            job = self.state.jobs.get(next(iter(touched)))
            if job is None or is_at_rest(self.state, job):
                return
        waiting = deque(list(self.state.live_uids) if touched is None else sorted(touched))
        rounds: dict[str, int] = {}
        while waiting:
            uid = waiting.popleft()
            job = self.state.jobs.get(uid)
            if self._debug and job is not None:
                check_glance(self.state, job, now_s)
            if job is None or is_at_rest(self.state, job):
                continue
            decision = reconcile(self.state, uid, now_s)
            if not decision.events and not decision.commands:
                continue
            rounds[uid] = rounds.get(uid, 0) + 1
            if rounds[uid] > MAX_FOLLOW_UPS:
                raise InvariantError(f"job '{uid}' does not come to rest", self.state.jobs[uid].story)
            was_live = self.state.jobs[uid].live
            self._take(decision, now_s, outcome)
            self._dirty = True
            waiting.append(uid)
            waiting.extend(sorted((decision.touched or set()) - {uid}))
            if was_live and not self.state.jobs[uid].live:
                waiting.extend(self._dependents(self.state.jobs[uid]))

    def _dependents(self, job: Job) -> list[str]:
        waiting = (self.state.jobs[uid] for uid in self.state.index.dependents(job))
        found = [o.uid for o in waiting if any(run.uid == job.uid for _, run in blocking(self.state, o))]
        return [*found, job.parent] if job.parent else found

    def _plan(self, now_s: float, outcome: Outcome) -> None:
        """Schedule, and take the plan in as any other input."""
        self._dirty = False
        picture = self._kept_picture()
        if not picture.any_waits(now_s):
            self.trace = PlanTrace()
            return
        snapshot, kept = picture.look(now_s)
        if self._debug:
            check_picture(self.state, snapshot, kept)
        plan, self.trace = schedule(snapshot, self._seed, kept)
        if plan.is_empty():
            return
        decision = step(self.state, PlanProposed(plan), now_s)
        self._take(decision, now_s, outcome)
        self._settle(decision.touched, now_s, outcome)
        # A plan that was dropped whole is proposed again at the next tick, not at once.
        self._dirty = self._dirty and bool(decision.events)

    def _kept_picture(self) -> Picture:
        """Return what the scheduler sees; the state is another one after a refused batch."""
        if self._picture is None or self._pictured is not self.state:
            self._picture, self._pictured = Picture(self.state), self.state
        return self._picture

    @property
    def dirty(self) -> bool:
        """Whether something changed that the scheduler has not seen."""
        return self._dirty
