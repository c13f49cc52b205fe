"""The loop around the runtime: inputs in, tick, commands out.

Inputs queue while a tick runs; the next tick takes all of them and writes them in one transaction, so
that durability costs one disk flush per batch (group commit), and a caller is answered only after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from tidecell.cell.journal import Journal, fold_before
from tidecell.cell.retention import cut_before
from tidecell.cell.runtime import Outcome, Runtime
from tidecell.cell.state import CellState, Job
from tidecell.client.home import Home
from tidecell.client.views import Sample
from tidecell.engines.local import LocalEngine, Replaced
from tidecell.engines.wire import Reported, Used
from tidecell.server.access import AccessBook
from tidecell.server.admission import Admission
from tidecell.server.idle import IdleWatch
from tidecell.server.measure import Measurements
from tidecell.server.probes import Prober
from tidecell.server.serving import Serving
from tidecell.structs.errors import InvariantError, JournalError, TidecellError
from tidecell.structs.messages import ControlStarted, Event, Input, TaskDown, TaskUp, Tick
from tidecell.telemetry import SampleStore, log_line

TICK_S = 0.5
SAMPLE_S = 1.0
RETRY_JOURNAL_S = 1.0
FORGET_FIRST_S, FORGET_EVERY_S = 10.0, 3600.0  # old events: looked for after the start, and then hourly

_Waiter = asyncio.Future[Outcome] | None


class ControlPlane:
    """One cell's control plane.

    Attributes:
        changed: Set and replaced after every tick that changed something; wait on it to follow along.
        journal_error: Why the journal refused the last batch; None while it accepts.
    """

    def __init__(self, home: Home, debug: bool = False) -> None:
        self.home = home
        self.config = home.config()
        self.journal = Journal(home / "journal.db")
        self.runtime = Runtime(self.journal, debug=debug or self.config.debug)
        self.started_s = time.time()
        self.pid = os.getpid()
        self.runtime.tick([ControlStarted()], self.started_s)
        self._idle = IdleWatch()
        self.measurements = Measurements(SampleStore(home / "metrics.db"))
        self.engine = LocalEngine(home.socket_path("agent"), self.state.epoch, self.say, self._measured)
        self.prober = Prober(lambda: self.state, self.say)
        self.access = AccessBook(home)
        self.admission = Admission(home.path)
        self.serving = Serving(home.socket_path("router"), self._token_hashes, lambda: self.state, self.say)
        self.changed = asyncio.Event()
        self.sample_ready: list[Callable[[Sample], None]] = []
        self.journal_error: JournalError | None = None
        self._inbox: list[tuple[Input, _Waiter]] = []
        self._wake = asyncio.Event()
        self._last_now_s = self.started_s

    @property
    def state(self) -> CellState:
        """The cell as it is."""
        return self.runtime.state

    def find(self, name: str) -> Job | None:
        """Return the newest run of that name."""
        return self.state.find(name)

    # ------------------------------------------------------------------------------ inputs

    def say(self, message: Input) -> None:
        """Queue an input nobody waits for."""
        self._inbox.append((message, None))
        self._wake.set()

    async def ask(self, message: Input) -> None:
        """Queue an input and wait until what it means is durable.

        Raises:
            TidecellError: It was refused, or the journal does not accept anything.
        """
        waiter: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._inbox.append((message, waiter))
        self._wake.set()
        await waiter

    def _token_hashes(self) -> tuple[str, ...]:
        """What the router accepts; a damaged file of users leaves the owner."""
        try:
            return self.access.token_hashes(time.time())
        except TidecellError as error:
            log_line(f"control: {error.message}")
            return self.access.token_hashes(time.time())

    def _measured(self, message: Reported | Used) -> None:
        self.measurements.take(message, time.time())
        if isinstance(message, Used) and message.gpu_percents:
            self._idle.take(self.state, message.machine, message.gpu_percents, time.time())
            for over in self._idle.over(self.state, time.time()):
                self.say(over)

    # -------------------------------------------------------------------------------- loop

    async def run(self) -> None:
        """Run until cancelled, or until another control plane takes over."""
        jobs: list[Coroutine[Any, Any, None]] = [
            self._run_ticks(),
            self._run_samples(),
            self.engine.run(),
            self.serving.run_push(),
            self.serving.run_poll(),
            self._run_retention(),
        ]
        self._follow()
        try:
            async with asyncio.TaskGroup() as group:
                for job in jobs:
                    group.create_task(job)
        except* Replaced as replaced:
            log_line(f"control: {replaced.exceptions[0]}; ending")
        finally:
            self.prober.close()
            self.measurements.store.flush()
            self._save()

    def _save(self) -> None:
        """Leave a fresh snapshot, so that the next start replays nothing."""
        with contextlib.suppress(TidecellError):
            if self.journal.last_seq:
                self.journal.write_snapshot(self.state)

    async def _run_ticks(self) -> None:
        due_s = time.monotonic() + TICK_S
        while True:
            timeout_s = max(0.0, due_s - time.monotonic()) if self._needs_ticks() else 5.0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
            self._wake.clear()
            # Let handlers that are ready queue their inputs too: one flush for all of them.
            await asyncio.sleep(0)
            batch, self._inbox = self._inbox, []
            if time.monotonic() >= due_s:
                batch.append((Tick(), None))
                due_s = time.monotonic() + TICK_S
            if batch and not self._take(batch):
                await asyncio.sleep(RETRY_JOURNAL_S)

    def _needs_ticks(self) -> bool:
        return bool(self.state.live_uids) or any(not d.drained for d in self.state.drains.values())

    def _take(self, batch: Sequence[tuple[Input, _Waiter]]) -> bool:
        """Decide one batch; return False if the journal did not accept it."""
        self._last_now_s = now_s = max(self._last_now_s, time.time())
        messages = [message for message, _ in batch]
        try:
            outcome = self.runtime.tick(messages, now_s)
        except JournalError as error:
            self._refuse(batch, error)
            return False
        except InvariantError as error:
            self._isolate(batch, error)
            return True
        self.journal_error = None
        self._answer(batch, outcome)
        self._carry_out(messages, outcome)
        return True

    def _refuse(self, batch: Sequence[tuple[Input, _Waiter]], error: JournalError) -> None:
        """Nothing was accepted: tell callers; keep what engines said, which is true all the same."""
        if self.journal_error is None:
            log_line(f"control: {error.message}")
        self.journal_error = error
        keep: list[tuple[Input, _Waiter]] = []
        for message, waiter in batch:
            if waiter is not None:
                if not waiter.done():
                    waiter.set_exception(error)
            elif not isinstance(message, Tick):
                keep.append((message, None))
        self._inbox = keep + self._inbox
        self._wake.set()

    def _isolate(self, batch: Sequence[tuple[Input, _Waiter]], error: InvariantError) -> None:
        """A defect: find the input that shows it, so that the others are not lost with it."""
        if len(batch) > 1:
            for entry in batch:
                self._take([entry])
            return
        log_line(f"control: {error.message}\n  " + "\n  ".join(error.story))
        waiter = batch[0][1]
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)

    def _answer(self, batch: Sequence[tuple[Input, _Waiter]], outcome: Outcome) -> None:
        for (_, waiter), error in zip(batch, outcome.errors, strict=True):
            if waiter is None or waiter.done():
                continue
            if error is not None:
                waiter.set_exception(error)
            else:
                waiter.set_result(outcome)

    def _carry_out(self, messages: Sequence[Input], outcome: Outcome) -> None:
        for command in outcome.commands:
            self.engine.send(command)
        seqs = [m.agent_seq for m in messages if isinstance(m, TaskUp | TaskDown)]
        if seqs:
            self.engine.acknowledge("", max(seqs))
        if outcome.events:
            self._follow()
            self._announce(outcome.events)
        if self.runtime.dirty:
            self._wake.set()

    def _follow(self) -> None:
        self.prober.follow()
        self.serving.follow()

    def _announce(self, events: Sequence[Event]) -> None:
        event, self.changed = self.changed, asyncio.Event()
        event.set()

    # ---------------------------------------------------------------------------- old events

    async def _run_retention(self) -> None:
        """Fold what is older than is kept: read it in a thread, delete it a little at a time."""
        await asyncio.sleep(FORGET_FIRST_S)
        while self.config.keep_events_s:
            try:
                await self._forget(cut_before(time.time(), self.config.keep_events_s))
            except (TidecellError, sqlite3.Error) as error:
                log_line(f"control: old events stay for now: {error}")
            await asyncio.sleep(FORGET_EVERY_S)

    async def _forget(self, cut_s: float) -> None:
        oldest_s = self.journal.first_at_s()
        base = None
        if oldest_s and oldest_s < cut_s:
            base = await asyncio.to_thread(fold_before, self.journal.path, cut_s)
        if base is not None:
            self.journal.cut(base)
            log_line(f"control: events up to number {base.seq} are folded into sums by the day")
        while self.journal.sweep():
            await asyncio.sleep(0.05)

    # ----------------------------------------------------------------------------- samples

    async def _run_samples(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_S - time.time() % SAMPLE_S)
            if self.state.live_uids or not self._idle_sampled():
                self.measurements.sample(self.state, self.serving.stats, time.time())
            if self.access.any_expires():
                self.serving.follow()

    def _idle_sampled(self) -> bool:
        """On an idle cell one sample in ten seconds is enough."""
        return round(time.time()) % 10 != 0
