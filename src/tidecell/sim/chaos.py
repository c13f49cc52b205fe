"""The whole control plane under seeded faults: the real runtime, simulated agents and a network between.

    python -m tidecell.sim.chaos --seed 17 --mix all        replays one run, and prints how it ended

Users submit, scale, stop and change their minds for a while, and things go wrong as the mix says; then the
faults stop, and everything must come to an end. Safety is checked after every tick, by invariants of the
state, by a history of events, and by a ledger of what really ran.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tidecell.cell.runtime import Outcome, Runtime
from tidecell.cell.snapshot import take_snapshot
from tidecell.cell.state import CellState
from tidecell.engines.fake import Script
from tidecell.scheduler.schedule import schedule
from tidecell.sim import checkers
from tidecell.sim.agents import RunLedger, SimAgent
from tidecell.sim.chaos_users import USER_SPAN_S, Users
from tidecell.sim.clock import Clock
from tidecell.sim.faults import MIXES, Crash, CrashingLog, CrashPoint, Mix, random_crashes
from tidecell.sim.order_check import check_order
from tidecell.sim.simple import make_machine
from tidecell.structs.errors import InvariantError
from tidecell.structs.job import TaskState
from tidecell.structs.messages import (
    Command,
    ControlStarted,
    Input,
    JobRescaled,
    MachineLost,
    MachineSeen,
    Plan,
    PlanProposed,
    ReplicaDrained,
    StartTask,
    TaskDown,
    TaskEnded,
    TaskProbed,
    TaskUp,
    Tick,
)

TICK_S = 1.0
LATENCY_S = 0.02
REPEAT_S = 4.0
END_S = 3600.0  # by then all must have come to an end
START_S = 1_000.0


@dataclass
class Verdict:
    """How a run ended."""

    seed: int
    mix: str
    ended_s: float
    num_ticks: int
    num_events: int
    num_crashes: int
    num_starts: int
    num_preempted: int
    outcomes: dict[str, str]
    tried_victims: int = 0
    checked_heads: int = 0


class BrokenRun(AssertionError):
    """A run that broke a rule; says how to replay it."""


@dataclass
class Chaos:
    """One run.

    Attributes:
        crash_when: Overrides where the control plane crashes, for exhaustive runs.
        filter_command: Called with every command before it is sent; for seeded defects, returns what is sent.
    """

    seed: int
    mix: Mix
    crash_when: Callable[[int], CrashPoint] | None = None
    filter_command: Callable[[Command], Command | None] = lambda command: command
    num_machines: int = 3
    pending_inputs: list[Input] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.clock: Clock[Callable[[], None]] = Clock(START_S)
        crash = self.crash_when or random_crashes(self.mix.crash, random.Random(self.seed + 1))
        self.log = CrashingLog(when=crash, rng=random.Random(self.seed + 2))
        self.ledger = RunLedger()
        self.history = checkers.History()
        self.runtime: Runtime | None = None
        self.agents: dict[str, SimAgent] = {}
        self.users = Users(random.Random(self.seed + 3))
        self.faults = True
        self.skew_s = 0.0
        self.last_now_s = START_S
        self.deaf_until_s = 0.0
        self.stale: list[Plan] = []
        self.num_ticks = self.num_events = self.tried = self.heads = 0
        self.seen_events = 0
        self._last_sent: dict[str, float] = {}

    # -------------------------------------------------------------------------------- the run

    def run(self) -> Verdict:
        """Run to the end; raise BrokenRun where a rule is broken."""
        try:
            return self._run()
        except BrokenRun:
            raise
        except (InvariantError, KeyError, ValueError, IndexError, AssertionError, TypeError) as error:
            story = "\n  ".join(getattr(error, "story", ()))
            raise BrokenRun(
                f"{type(error).__name__}: {error}\n  {story}\nat {self.clock.now_s:.3f} s; replay with:\n"
                f"  python -m tidecell.sim.chaos --seed {self.seed} --mix {self.mix.name}"
            ) from error

    def _run(self) -> Verdict:
        for i in range(self.num_machines):
            self._add_machine(f"m{i}", gpus=2 if i == 0 else 0)
        self._boot()
        self.later(TICK_S, self._beat)
        self._plan_faults()
        while not self._is_over():
            next_s = self.clock.next_s()
            if next_s is None or next_s > START_S + END_S:
                waiting = {j.uid: str(j.state) for j in self._state().live_jobs()}
                raise BrokenRun(
                    f"not live: {waiting} have not ended {END_S:g} s after the start; replay with:\n"
                    f"  python -m tidecell.sim.chaos --seed {self.seed} --mix {self.mix.name}"
                )
            for _, happen in self.clock.take_until(next_s):
                happen()
        return self._verdict()

    def _is_over(self) -> bool:
        return (
            not self.faults
            and self.runtime is not None
            and not self.runtime.state.live_uids
            and not any(a.processes for a in self.agents.values())
        )

    def _state(self) -> CellState:
        return self.runtime.state if self.runtime is not None else self.log.replay()

    def _verdict(self) -> Verdict:
        state = self._state()
        checkers.check_replay(state, self.log)
        outcomes = {uid: str(job.outcome) for uid, job in state.jobs.items()}
        for uid, job in state.jobs.items():  # none lost: a success rests on processes that really ended well
            if job.outcome is TaskState.SUCCEEDED and not self.ledger.clean_exits.get(uid):
                raise InvariantError(f"'{uid}' succeeded, and no process of it ever ended well")
        return Verdict(
            self.seed,
            self.mix.name,
            self.clock.now_s - START_S,
            self.num_ticks,
            self.num_events,
            self.log.num_crashes,
            self.ledger.num_starts,
            self.history.num_preempted,
            outcomes,
            self.tried,
            self.heads,
        )

    def later(self, delay_s: float, happen: Callable[[], None]) -> None:
        """Let something happen after a while."""
        self.clock.at(self.clock.now_s + delay_s, happen)

    # ------------------------------------------------------------------------------- machines

    def _add_machine(self, name: str, gpus: int) -> None:
        spec = make_machine(name, 4000, 16 << 30, gpus, "H100")
        self.ledger.capacity[name] = spec.capacity
        self.agents[name] = SimAgent(
            spec, self.ledger, self._script, self.later, self._from_agent, lambda: self.clock.now_s
        )

    def _script(self, command: StartTask) -> Script:
        return self.users.script_of(command, self.faults)

    def _lose(self, name: str) -> None:
        agent = self.agents[name]
        if not self.faults or not agent.up:
            return
        agent.lose_power()
        if self.rng.random() < 0.5:
            self.later(self.rng.uniform(1, 5), lambda: self._tell_lost(name))
        self.later(self.rng.uniform(2, 30), lambda: self._return(name))

    def _tell_lost(self, name: str) -> None:
        if not self.agents[name].up:
            self._hear(MachineLost(name))

    def _return(self, name: str) -> None:
        if not self.agents[name].up:
            self.agents[name].come_back()
            self._connect(name)

    # -------------------------------------------------------------------------------- network

    def _connect(self, name: str) -> None:
        """The agent and the control plane have a new connection; the old one and its messages are gone."""
        agent = self.agents[name]
        if self.runtime is None or not agent.up:
            return
        agent.session += 1
        self._last_sent.pop(name, None)
        self._send_up(agent, MachineSeen(agent.spec, agent.known()), in_order=True)
        for message in list(agent.untold.values()):
            self._send_up(agent, message)
        self._repeat(agent, agent.session)

    def _repeat(self, agent: SimAgent, session: int) -> None:
        """Over a network that loses messages, what was not acknowledged is said again."""
        if self.mix.drop:
            self.later(REPEAT_S, lambda: self._say_again(agent, session))

    def _say_again(self, agent: SimAgent, session: int) -> None:
        if session == agent.session and agent.up:
            for message in list(agent.untold.values()):
                self._send_up(agent, message)
            self._repeat(agent, session)

    def _from_agent(self, agent: SimAgent, message: TaskUp | TaskDown) -> None:
        self._send_up(agent, message)

    def _send_up(self, agent: SimAgent, message: Input, in_order: bool = False) -> None:
        session, mix = agent.session, self.mix
        if not in_order and self.faults and self.rng.random() < mix.drop:
            return
        copies = 2 if not in_order and self.faults and self.rng.random() < mix.duplicate else 1
        for _ in range(copies):
            delay_s = LATENCY_S * self.rng.uniform(0.5, 1.5)
            if mix.reorder and self.faults and not in_order:
                delay_s += self.rng.choice([0.0, 0.0, 0.1, 2.0])
            # Nothing overtakes what opened the connection; a network without reordering keeps all in order.
            at_s = max(self.clock.now_s + delay_s, self._last_sent.get(agent.spec.name, 0.0))
            if not mix.reorder or in_order:
                self._last_sent[agent.spec.name] = at_s
            # What a reordering network has delayed comes even after the connection has broken.
            self.clock.at(
                at_s, lambda: self._arrive(agent, session, message, late=mix.reorder and not in_order)
            )

    def _arrive(self, agent: SimAgent, session: int, message: Input, late: bool) -> None:
        if session == agent.session or late:
            self._hear(message)

    def _hear(self, message: Input) -> None:
        """The control plane gets an input; it decides on it soon, with what else has come."""
        if self.runtime is None:
            return
        if not self.pending_inputs:
            self.later(0.0 if self.clock.now_s >= self.deaf_until_s else 1.0, self._tick)
        self.pending_inputs.append(message)

    def _send_down(self, command: Command) -> None:
        sent = self.filter_command(command)
        agent = self.agents.get(getattr(command, "machine", ""))
        if sent is None or agent is None:
            return
        session = agent.session
        self.later(LATENCY_S, lambda: agent.order(session, sent))

    # ------------------------------------------------------------------------- control plane

    def _boot(self) -> None:
        """A control plane starts, maybe several times."""
        self.pending_inputs.clear()
        self.runtime = Runtime(self.log, debug=True)
        self._catch_up()
        if self._decide([ControlStarted()]):
            for name in self.agents:
                self._connect(name)

    def _catch_up(self) -> None:
        """Let the history see what a crash made durable without anybody having been told."""
        if self.runtime is None:
            return
        untold = [r.event for r in self.log.records(after=self.seen_events)]
        self.seen_events = self.log.last_seq
        for event in untold:
            self._note_success(event)
            self.history.follow(event)

    def _note_success(self, event: object) -> None:
        if isinstance(event, TaskEnded) and event.then is TaskState.SUCCEEDED and event.exit_code == 0:
            self.ledger.succeeded.add((event.ref.uid, event.ref.index))
        elif isinstance(event, JobRescaled):  # replicas that were scaled away are new ones when scaled back
            gone = {k for k in self.ledger.succeeded if k[0] == event.uid and k[1] >= event.replicas.max}
            self.ledger.succeeded -= gone

    def _now_s(self) -> float:
        """Return the control plane's time: its clock may jump, its time never goes back while it runs."""
        self.last_now_s = max(self.last_now_s, self.clock.now_s + self.skew_s)
        return self.last_now_s

    def _tick(self) -> None:
        if self.runtime is not None and self.clock.now_s < self.deaf_until_s:
            self.later(0.5, self._tick)
            return
        batch, self.pending_inputs = self.pending_inputs, []
        if batch and self._decide(batch):
            seqs: dict[str, list[int]] = {}
            for message in batch:
                if isinstance(message, TaskUp | TaskDown) and message.agent_seq:
                    seqs.setdefault(message.machine, []).append(message.agent_seq)
            for name, done in seqs.items():
                self._acknowledge(self.agents[name], tuple(done))

    def _acknowledge(self, agent: SimAgent, seqs: tuple[int, ...]) -> None:
        self.later(LATENCY_S, lambda: agent.acknowledge(seqs))

    def _decide(self, batch: list[Input]) -> bool:
        """One tick of the control plane; False if it crashed in it."""
        runtime = self.runtime
        if runtime is None:
            return False
        now_s = self._now_s()
        try:
            outcome = runtime.tick(batch, now_s)
        except Crash:
            self._die()
            return False
        self.num_ticks += 1
        self.num_events += len(outcome.events)
        self.seen_events = self.log.last_seq
        for event in outcome.events:
            self._note_success(event)
        self.history.take(runtime.state, outcome.events, now_s)
        self._check(runtime, outcome, now_s)
        for command in outcome.commands:
            self._send_down(command)
        return True

    def _check(self, runtime: Runtime, outcome: Outcome, now_s: float) -> None:
        checkers.check_production(runtime.state)
        if self.mix.name == "calm" and self.num_ticks % 7 == 0:
            checkers.check_no_lost_wakeup(runtime, outcome, now_s, 0)
        if self.num_ticks % 5 == 0:
            snapshot = take_snapshot(runtime.state, now_s)
            plan, trace = schedule(snapshot)
            self.tried += checkers.check_minimal(snapshot, plan, 0)
            checkers.check_deterministic(runtime.state, now_s, 0)
            self.heads += check_order(snapshot, plan, trace)
            if self.faults and not plan.is_empty():
                self.stale.append(plan)
        if self.num_ticks % 50 == 0:
            checkers.check_replay(runtime.state, self.log)

    def _die(self) -> None:
        """The control plane is gone; all connections with it. Another one starts a little later."""
        self.runtime = None
        for agent in self.agents.values():
            agent.session += 1
        self.last_now_s = 0.0  # nobody remembers what time it was
        self.later(self.rng.uniform(0.1, 5.0), self._boot)

    # ---------------------------------------------------------------------------------- time

    def _beat(self) -> None:
        """What happens every second: a tick, probes, users, stale plans."""
        self.later(TICK_S, self._beat)
        if self.faults and self.clock.now_s > START_S + USER_SPAN_S:
            self._stop_faults()
        runtime = self.runtime
        if runtime is None:
            return
        for message in self.users.say(runtime.state, self.clock.now_s - START_S, self.faults):
            self._hear(message)
        for message in self._probes():
            self._hear(message)
        if self.faults and self.stale and self.rng.random() < self.mix.stale_plan:
            self._hear(PlanProposed(self.rng.choice(self.stale)))
        if self.faults and self.rng.random() < self.mix.hiccup:
            self.deaf_until_s = self.clock.now_s + self.rng.uniform(1, 10)
        self._hear(Tick())

    def _probes(self) -> list[Input]:
        """What the control plane's own prober and router say of services."""
        told: list[Input] = []
        for job in self._state().live_jobs():
            for task in job.tasks if job.spec.is_service else ():
                ref = self._state().ref(job, task)
                process = self.ledger.running.get(ref)
                if task.notice is not None and not task.notice.stopping and self.rng.random() < 0.5:
                    told.append(ReplicaDrained(ref))
                elif process is not None and process.up and not task.ready and task.started_s:
                    told.append(TaskProbed(ref, ready=True))
        return told

    def _plan_faults(self) -> None:
        span_s = USER_SPAN_S
        for name in self.agents:
            self._at_random(self.mix.reconnect_every_s, span_s, self._connecting(name))
            self._at_random(self.mix.machine_loss_every_s, span_s, self._losing(name))
        self._at_random(self.mix.clock_jump_every_s, span_s, self._jump)

    def _connecting(self, name: str) -> Callable[[], None]:
        return lambda: self._connect(name)

    def _losing(self, name: str) -> Callable[[], None]:
        return lambda: self._lose(name)

    def _at_random(self, every_s: float, span_s: float, happen: Callable[[], None]) -> None:
        at_s = 0.0
        while every_s and (at_s := at_s + self.rng.expovariate(1 / every_s)) < span_s:
            self.clock.at(START_S + at_s, happen)

    def _jump(self) -> None:
        self.skew_s = self.rng.choice([0.0, 30.0, 900.0, -30.0, -500.0])

    def _stop_faults(self) -> None:
        """From here on nothing goes wrong any more, and users only wait; machines that are away return."""
        self.faults, self.skew_s = False, max(0.0, self.skew_s)
        self.log.when = lambda number: ""
        for name, agent in self.agents.items():
            if not agent.up:
                self._return(name)
            else:
                self._connect(name)


def run_seed(seed: int, mix: str = "all") -> Verdict:
    """Run one seed under one mix of faults."""
    return Chaos(seed, MIXES[mix]).run()


def main() -> None:
    """Replay one run, or many."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mix", choices=sorted(MIXES), default="all")
    parser.add_argument("--count", type=int, default=1, help="how many seeds, from --seed on")
    args = parser.parse_args()
    for seed in range(args.seed, args.seed + args.count):
        print(run_seed(seed, args.mix))


if __name__ == "__main__":
    main()

__all__ = ["BrokenRun", "Chaos", "Verdict", "run_seed"]
