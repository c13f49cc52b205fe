"""The demo's burst of requests, and what it did to a training beside it."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.text import Text

from tidecell.cli.show import err
from tidecell.client.client import Client
from tidecell.client.home import Home
from tidecell.client.views import EventView, JobStatus
from tidecell.structs.errors import TidecellError

CLIENTS = 12
HOLD_S = 12.0  # how long the burst goes on once the service has grown
MAX_BURST_S = 60.0
MAX_WAIT_S = 90.0
TOKENS = 32


@dataclass
class TideResult:
    """What the burst and the training came to.

    Attributes:
        latencies_s: Of successful requests.
        errors: Texts of failed ones.
        give_s: From the order to leave to the worker's end, per shrink.
        back_s: From the last request to training at full size again; None if it ended before.
        compared: Number of steps at which both trainings wrote a digest.
    """

    began_s: float
    latencies_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)
    give_s: list[float] = field(default_factory=list)
    back_s: float | None = None
    grown: bool = False
    lost_steps: int = 0
    steps: int = 0
    compared: int = 0
    differing: int = 0
    digest: str = ""
    router_failed: int = 0

    @property
    def failed(self) -> int:
        """Requests that did not end well, by the clients' ledger or the router's."""
        return max(len(self.errors), self.router_failed)

    @property
    def good(self) -> bool:
        """Whether all three zeros hold, and there was a tide to hold them against."""
        tide = self.grown and bool(self.give_s) and self.compared > 0
        return tide and not (self.failed or self.lost_steps or self.differing)

    def compare(self, run: Path, reference: Path) -> None:
        """Compare digests with the same training left undisturbed, step by step; count lost steps."""
        mine, other = read_digests(run), read_digests(reference)
        common = sorted(set(mine) & set(other))
        self.compared = len(common)
        self.differing = sum(1 for step in common if mine[step] != other[step])
        self.digest = mine[common[-1]] if common else ""
        self.steps, self.lost_steps = count_steps(run)

    def rows(self) -> list[tuple[str, str]]:
        """Return the rows of the summary."""
        count = len(self.latencies_s)
        p95 = statistics.quantiles(self.latencies_s, n=20)[-1] if count > 1 else 0.0
        gave = f"{max(self.give_s):.2f} s from the order to the end of the worker" if self.give_s else "never"
        back = (
            f"{self.back_s:.1f} s after the last request"
            if self.back_s is not None
            else "not before it ended"
        )
        equal = "equal" if not self.differing else f"{self.differing} DIFFER"
        return [
            ("burst", f"{count} answers, p95 {p95:.2f} s, {self.failed} failed"),
            ("training gave way", gave),
            ("training grew back", back),
            ("steps", f"{self.steps} committed, {self.lost_steps} lost"),
            (
                "weights",
                f"{self.compared} digests compared with the undisturbed run: {equal} ({self.digest[:16]})",
            ),
        ]


def read_digests(run: Path) -> dict[int, str]:
    """Return the digests of weights and optimizer state that a run wrote, by step."""
    from tidecell.train.history import read_digests as read

    return read(run)


def count_steps(run: Path) -> tuple[int, int]:
    """Return steps committed, and steps that had to be done again."""
    from tidecell.train.history import count_steps as count

    return count(run)


class Tide:
    """One burst beside one elastic training."""

    def __init__(self, client: Client, home: Home, training: str, service: str, question: str) -> None:
        self._client = client
        self._home = home
        self._training = training
        self._service = service
        self._question = question
        self._result = TideResult(time.time())
        self._stop = asyncio.Event()
        self._phase = ""
        self._live: Live | None = None

    def run(self, checkpoint_every: int, last_step: int) -> TideResult:
        """Wait for the training, burst, wait for it to come back; return what was measured."""
        with Live(console=err, refresh_per_second=4, transient=True) as self._live:
            asyncio.run(self._run(checkpoint_every, last_step))
        return self._result

    async def _run(self, checkpoint_every: int, last_step: int) -> None:
        await self._until("training starts", lambda: self._world_size() >= 2)
        await self._rest(4.0)
        self._mark("burst begins")
        requests = asyncio.create_task(self._burst())
        try:
            await self._until(
                "burst; the service grows", lambda: self._job(self._service).ready >= 2, MAX_BURST_S
            )
            self._result.grown = True
            self._mark("service has grown")
            await self._rest(HOLD_S, "burst at full size")
        finally:
            self._stop.set()
            await requests
        ended_s = time.time()
        self._mark("burst ends")
        await self._until("training grows back", lambda: self._over() or self._world_size() >= 2)
        if not self._over():
            self._result.back_s = time.time() - ended_s
            self._mark("training is back")
            await self._pass_checkpoint(checkpoint_every, last_step)
        self._collect()

    async def _pass_checkpoint(self, every: int, last_step: int) -> None:
        """Let it train on at full size past one more checkpoint, whose digest will be compared."""
        goal = min(last_step, (self._step() // every + 2) * every)
        await self._until(f"training goes on to step {goal}", lambda: self._over() or self._step() >= goal)

    # ---------------------------------------------------------------------------- observing

    def _job(self, name: str) -> JobStatus:
        return self._client.job(name)

    def _over(self) -> bool:
        return self._job(self._training).done

    def _latest(self) -> dict[str, Any]:
        reports = self._client.reports(self._training)
        return reports[-1].data if reports else {}

    def _world_size(self) -> int:
        return int(self._latest().get("world_size", 0))

    def _step(self) -> int:
        return int(self._latest().get("step", 0))

    def _mark(self, text: str) -> None:
        self._result.marks.append((time.time(), text))
        err.print(f"  {time.time() - self._result.began_s:5.1f} s  {text}")

    async def _until(self, what: str, truth: Callable[[], bool], timeout_s: float = MAX_WAIT_S) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not await asyncio.to_thread(truth):
            if time.monotonic() > deadline_s:
                raise TidecellError(
                    f"the demo waited {timeout_s:.0f} s and this did not happen: {what}",
                    f"tide --home {self._home.path} why {self._training}",
                )
            await self._show(what)
            await asyncio.sleep(0.25)

    async def _rest(self, seconds: float, what: str = "training at full size") -> None:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            await self._show(what)
            await asyncio.sleep(0.25)

    async def _show(self, what: str) -> None:
        if self._live is None:
            return
        training, service = await asyncio.to_thread(
            lambda: (self._job(self._training), self._job(self._service))
        )
        latest = await asyncio.to_thread(self._latest)
        line = f"  {what:<28} training {training.running} workers, step {latest.get('step', 0)}"
        line += f" | serving {service.ready} replicas, {len(self._result.latencies_s)} answers"
        self._live.update(Text(line, style="dim"))

    # ------------------------------------------------------------------------------ requests

    async def _burst(self) -> None:
        from openai import AsyncOpenAI

        url = f"{self._client.router_url}/v1"
        async with AsyncOpenAI(
            base_url=url, api_key=self._home.token(), max_retries=0, timeout=60.0
        ) as openai:
            await asyncio.gather(*(self._one_client(openai, n) for n in range(CLIENTS)))

    async def _one_client(self, openai: Any, number: int) -> None:
        """Ask again and again until the burst is over; every request is in the ledger, none is retried."""
        count = 0
        while not self._stop.is_set():
            began_s = time.monotonic()
            try:
                tokens = await self._one_request(openai, seed=1000 * number + count)
                if tokens == 0:
                    raise ValueError("an answer without tokens")
                self._result.latencies_s.append(time.monotonic() - began_s)
            except Exception as error:  # whatever it was, it was a failed request
                self._result.errors.append(repr(error))
            count += 1

    async def _one_request(self, openai: Any, seed: int) -> int:
        stream = await openai.chat.completions.create(
            model=self._service,
            messages=[{"role": "user", "content": self._question}],
            max_tokens=TOKENS,
            temperature=0.8,
            seed=seed,
            stream=True,
            stream_options={"include_usage": True},
        )
        tokens = 0
        async for chunk in stream:
            if chunk.usage is not None:
                tokens = chunk.usage.completion_tokens
        return tokens

    # ---------------------------------------------------------------------------- afterwards

    def _collect(self) -> None:
        """Read off the journal how fast workers left, and off the router what it counted as failed."""
        events = self._client.events(self._training, limit=10_000)
        self._result.give_s = leave_times(events)
        samples = self._client.series(time.time() - self._result.began_s + 5, points=2000)
        counts = [s.services[self._service].failed_total for s in samples if self._service in s.services]
        self._result.router_failed = counts[-1] - counts[0] if counts else 0


def leave_times(events: list[EventView]) -> list[float]:
    """Return seconds from the order to leave to the end of the process, for each preempted worker."""
    told: dict[tuple[str, int], float] = {}
    times = []
    for event in events:
        ref = event.body.get("ref", {})
        key = (ref.get("uid", ""), ref.get("epoch", 0))
        if event.type == "TaskNoticed" and event.body.get("by"):
            told[key] = event.at_s
        elif event.type == "TaskEnded" and key in told:
            times.append(event.at_s - told.pop(key))
    return times
