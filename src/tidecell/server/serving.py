"""The control plane's side of traffic: tables to the router, load from it, autoscaling, draining.

The router serves its last table whatever happens here. A replica that was told to leave is asked to end
only when the router, already serving a table in which it drains, has nothing in flight on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from tidecell.capacity.autoscale import Autoscaler
from tidecell.cell.state import CellState, Job
from tidecell.server.routing import build_table, endpoint_id
from tidecell.structs.errors import CellUnreachable, TidecellError
from tidecell.structs.job import Replicas, Scaling
from tidecell.structs.messages import DesiredProposed, Input, ReplicaDrained
from tidecell.telemetry import log_line
from tidecell.traffic.control import RouterControl, Why
from tidecell.traffic.stats import RouterStats
from tidecell.traffic.table import EMPTY, Table

POLL_S = 0.5
POLL_DRAINING_S = 0.05
RETRY_S = 0.2


def _content(table: Table) -> tuple[object, ...]:
    """Everything but the version: two tables that agree in it serve alike."""
    return (table.routes, table.epoch, table.tokens, table.rules, table.tenants, table.aliases)


class Serving:
    """Keeps router and autoscalers in step with the cell.

    Attributes:
        stats: What the router said last; None while it does not answer.
    """

    def __init__(
        self,
        socket_path: Path,
        token_hashes: Callable[[], tuple[str, ...]],
        state: Callable[[], CellState],
        say: Callable[[Input], None],
    ) -> None:
        self._control = RouterControl(socket_path)
        self._token_hashes = token_hashes
        self._state = state
        self._say = say
        self._changed = asyncio.Event()
        self._version = 0
        self._wanted: Table | None = None
        self._served: Table | None = None
        self._router_pid = 0
        self._scalers: dict[str, tuple[Scaling, Replicas, Autoscaler]] = {}
        self.stats: RouterStats | None = None
        self.services_seen = asyncio.Event()

    def table(self) -> Table:
        """Return the table that the router has or is about to get."""
        return self._wanted or EMPTY

    def follow(self) -> None:
        """Look whether the cell's state asks for another table."""
        table = build_table(self._state(), self._version, self._token_hashes())
        if self._wanted is None or _content(table) != _content(self._wanted):
            self._version += 1
            self._wanted = replace(table, version=self._version)
            self._changed.set()
        if table.routes:
            self.services_seen.set()
        else:
            self.services_seen.clear()

    async def run_push(self) -> None:
        """Give the router every new table, for as long as it takes."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                if self._wanted is not None and self._served != self._wanted:
                    table = self._wanted
                    await self._control.put_table(table)
                    self._served = table
            except CellUnreachable:
                self._changed.set()
                await asyncio.sleep(RETRY_S)
            except TidecellError as error:
                log_line(f"control: the router refused a table: {error.message}")

    async def run_poll(self) -> None:
        """Ask the router for its load; scale services and finish drains by what it says."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                self.stats = await self._control.stats()
                self._notice_restart(self.stats)
                self._finish_drains(self.stats)
                self._autoscale(self.stats, loop.time())
            except TidecellError:
                self.stats = None
            if not self.services_seen.is_set() and self.stats is not None:
                await self._idle_wait()
            else:
                await asyncio.sleep(POLL_DRAINING_S if self._draining() else POLL_S)

    async def _idle_wait(self) -> None:
        """Without services there is little to ask; look now and then whether the router is there."""
        try:
            await asyncio.wait_for(self.services_seen.wait(), 5.0)
        except TimeoutError:
            pass

    def _notice_restart(self, stats: RouterStats) -> None:
        """A router that came up with an older table than ours gets ours again."""
        if self._served is not None and (stats.epoch, stats.version) < self._served.order:
            self._served = None
            self._changed.set()

    def _draining(self) -> bool:
        return any(
            t.notice is not None and not t.notice.stopping
            for job in self._state().live_jobs()
            if job.spec.is_service
            for t in job.tasks
        )

    def _finish_drains(self, stats: RouterStats) -> None:
        """Report replicas drained that the router knows to be draining and idle."""
        if self._served is None or self._served is not self._wanted:
            return  # the router may still send requests to what we have told to leave
        if (stats.epoch, stats.version) < self._served.order:
            return
        state = self._state()
        for job in list(state.live_jobs()):
            if not job.spec.is_service:
                continue
            known = stats.services.get(job.spec.name)
            for task in job.tasks:
                if task.notice is None or task.notice.stopping:
                    continue
                endpoint = known.endpoints.get(endpoint_id(job, task)) if known is not None else None
                if endpoint is None or endpoint.in_flight == 0:
                    self._say(ReplicaDrained(state.ref(job, task)))

    def _autoscale(self, stats: RouterStats, now_s: float) -> None:
        state = self._state()
        live = {job.uid: job for job in state.live_jobs() if job.spec.scaling is not None}
        for uid in set(self._scalers) - set(live):
            del self._scalers[uid]
        for uid, job in live.items():
            load = stats.services.get(job.spec.name)
            if load is None or job.stopping is not None:
                continue
            ready = sum(1 for t in job.staying_tasks() if t.ready)
            decision = self._scaler(job).observe(
                now_s, float(load.ongoing), ready, job.desired, float(load.rate_10s)
            )
            if decision.desired != job.desired:
                self._say(DesiredProposed(uid, decision.desired, decision.reason))

    def _scaler(self, job: Job) -> Autoscaler:
        scaling = job.spec.scaling or Scaling()
        known = self._scalers.get(job.uid)
        if known is None or known[:2] != (scaling, job.spec.replicas):
            scaler = Autoscaler(scaling, job.spec.replicas.min, job.spec.replicas.max)
            known = (scaling, job.spec.replicas, scaler)
            self._scalers[job.uid] = known
        return known[2]

    async def why(self, name: str) -> Why:
        """Return what the router says of a service, a model, or a request by its id.

        Raises:
            NotFoundError: It knows none of that name.
            CellUnreachable: It does not answer.
        """
        return await self._control.why(name)

    async def metrics(self) -> str:
        """Return the router's metrics as Prometheus text; empty while it does not answer."""
        try:
            return await self._control.metrics()
        except TidecellError:
            return ""
