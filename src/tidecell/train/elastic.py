"""Elastic training in place: workers come and go, the weights do not notice.

The global batch is V virtual ranks, each one micro-batch; W workers share them out (any W from 1 to V,
changing at any moment). A virtual rank's gradient depends on (seed, step, virtual rank) alone and is added
up along a fixed tree, so the weights after step N are bit for bit the same whatever W was on the way.

A worker that is told to leave goes at the next micro-batch boundary. The others keep the sums they have
finished, meet again in milliseconds, and compute only the leaves that are missing: no step is lost. A
newcomer is taken in at a step boundary, once it has imported what it needs; it gets the weights and the
optimizer's state from a member. Every exchange carries the newest generation any member has seen, so all
change over after the same step. It does not know data, models or checkpoints.

    with elastic.Session(model, optimizer, num_vranks=4, seed=0) as session:
        for step in session.steps(400):
            loss = session.step(lambda vrank: loss_of(batch(step, vrank)))
        session.finish(lambda: save(model))

Sources: EasyScale (SC'23) and VirtualFlow (MLSys'22) for virtual workers, Horovod Elastic (2020) for
growing in place.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from tidecell.models.training_state import collect, require_contract, restore
from tidecell.task_link import AgentLink, Membership, Notice, agent_link
from tidecell.train.determinism import basic_contract, refuse_running_statistics, seed_everything
from tidecell.train.gradients import FlatGradients, clip_
from tidecell.train.peers import Host, Peers, PeersLost, abandonable
from tidecell.train.reduce import exchange, merge_local
from tidecell.train.signals import SignalNotices
from tidecell.train.sync import Progress, choose_source, receive_state, send_state
from tidecell.train.tree import Node, assign_leaves, choose_kept, final_nodes

# An exchange that is nearly done may finish after a member was told to leave.
EXCHANGE_GRACE_S = 0.1
# Peers are lost and the agent announced nothing: ask it to let us meet again.
HEAL_AFTER_S = 2.0
AGENT_AWAY_S = 30.0


class Leaving(BaseException):
    """This worker was told to leave. A training script's ``except Exception`` should not eat it."""

    def __init__(self, notice: Notice) -> None:
        super().__init__(notice.cause)
        self.notice = notice


class Session:
    """A worker's part in an elastic training.

    Args:
        model: Its trained parameters (``requires_grad``) are kept the same on all workers.
        optimizer: Elementwise ones are exact (SGD, Adam, AdamW); it is stepped by ``step``.
        num_vranks: Virtual ranks V; the global batch is V micro-batches. At most V workers take part.
        seed: Of everything random inside a micro-batch.
        max_grad_norm: Norm the reduced gradient is clipped to; 0: no clipping.
        threads: Threads that torch computes with; part of the determinism contract.
        contract: More of what the weights depend on (data version, micro-batch size); all workers and
            every checkpoint must agree on it.
        restore: Called on one worker when nobody has a state yet: loads the newest checkpoint into
            model and optimizer, if there is one, and returns the number of steps it has behind it.
        on_stop: Called on one worker when the whole job is told to stop, before it leaves.
        ignore_contract: Meet workers of another contract all the same.
        link: The line to the agent; by default that of this process.

    Attributes:
        committed: Steps whose update is in the weights.
        grad_norm: Norm of the last reduced gradient, before clipping.
        loss: Mean loss of the last committed step.
        probed: Results of the last step's probes; empty on a worker that was brought up to date.
        events: Changes of membership seen so far: generation, world size, milliseconds.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        num_vranks: int,
        seed: int = 0,
        max_grad_norm: float = 0.0,
        threads: int = 1,
        contract: Mapping[str, Any] | None = None,
        restore: Callable[[], int] | None = None,
        on_stop: Callable[[], None] | None = None,
        ignore_contract: bool = False,
        link: AgentLink | None = None,
    ) -> None:
        torch.set_num_threads(threads)
        refuse_running_statistics(model)
        self.model = model
        self.optimizer = optimizer
        self.num_vranks = num_vranks
        self.seed = seed
        self.max_grad_norm = max_grad_norm
        self.contract = {**basic_contract(model, optimizer, num_vranks, seed, threads), **(contract or {})}
        self.committed = -1
        self.loss = float("nan")
        self.grad_norm = float("nan")
        self.probed: list[float] = []
        self.events: list[dict[str, Any]] = []
        self._restore = restore or (lambda: 0)
        self._on_stop = on_stop
        self._ignore_contract = ignore_contract
        self._finished = False
        self._link = link or agent_link()
        self._signals = SignalNotices(self._link)
        self._host: Host | None = None
        self._peers = Peers.alone()
        self._group: Membership | None = None
        self._gradients = FlatGradients([p for p in model.parameters() if p.requires_grad])
        self._sums: dict[Node, Tensor] = {}
        self._losses: dict[int, float] = {}
        self._probe: Callable[[int], float] | None = None
        self._num_probes = 0
        self._probes: dict[int, float] = {}
        self._leaves: list[list[int]] = []
        self._kept: list[list[Node]] = []

    # -- what a training script uses ----------------------------------------------------------------

    def __enter__(self) -> Session:
        self._signals.install()
        try:
            if self._link.path:
                self._host = Host()
                self._link.ready(self._host.endpoint)
                self._regroup()
            else:
                self.committed = self._restore()
                self._share_out([{"nodes": []}])
        except Leaving as leaving:
            self._leave(leaving.notice)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, Leaving):
                self._leave(error.notice)
            if error is None and not self._finished:
                self.finish()
        finally:
            self._signals.remove()
            self._peers.close()

    @property
    def world_size(self) -> int:
        """Workers in this generation."""
        return self._peers.size

    @property
    def generation(self) -> int:
        """Number of this generation; 0 without a cell."""
        return self._peers.generation

    @property
    def is_leader(self) -> bool:
        """Whether this worker is the first of its generation: it writes files and reports."""
        return self._peers.rank == 0

    def steps(self, num_steps: int) -> Iterator[int]:
        """Yield the next step until ``num_steps`` are committed; a newcomer starts where the others are."""
        while self.committed < num_steps:
            yield self.committed

    def step(
        self,
        loss_of: Callable[[int], Tensor],
        lr: float | None = None,
        probe: Callable[[int], float] | None = None,
        num_probes: int = 0,
    ) -> float:
        """Compute, exchange and apply one update; return the mean loss over virtual ranks.

        Args:
            loss_of: Given a virtual rank, returns the mean loss of its micro-batch; must depend on the
                step, the virtual rank and torch's, numpy's or Python's random state alone.
            lr: Learning rate of this step, for all parameter groups.
            probe: Something to measure on the weights before this update (validation), given a number
                below ``num_probes``. The workers share the probes out; results are in ``probed``.

        Raises:
            Leaving: This worker was told to leave; handled where the ``with`` block ends.
        """
        step = self.committed
        self._probe, self._num_probes = probe, num_probes
        while self.committed == step:
            outcome = self._attempt(step, loss_of)
            # Not inside an ``except``: the exception would keep the lost generation's connections open.
            if outcome is None:
                self._keep_sums()
                self._regroup()
            else:
                self._commit(*outcome, lr)
        return self.loss

    def report(self, data: Mapping[str, Any]) -> None:
        """Send numbers for progress bars and charts, from the leader."""
        if self.is_leader:
            self._link.report(dict(data))

    def finish(self, work: Callable[[], None] | None = None) -> None:
        """Do the last work (save the model) on one worker; the others wait until they are told to go.

        When that worker dies on the way, another does the work from its start.
        """
        while not self.is_leader:
            self._link.wait(lambda: self._told() or self._member_lost(), 1.0)
            self._leave_if_told()
            if self._member_lost():
                self._regroup()
            away_since = self._link.down_since
            if away_since is not None and time.monotonic() - away_since > AGENT_AWAY_S:
                raise SystemExit(0)
        self._leave_if_told()
        if work is not None:
            work()
        self._finished = True

    # -- one step --------------------------------------------------------------------------------------

    def _attempt(self, step: int, loss_of: Callable[[int], Tensor]) -> tuple[Tensor, Tensor] | None:
        """Return the reduced gradient and all members' words, or None when this generation is over."""
        try:
            self._poll()
            self._compute(step, loss_of)
            self._measure()
            return self._exchange()
        except PeersLost:
            return None

    def _compute(self, step: int, loss_of: Callable[[int], Tensor]) -> None:
        """Compute the leaves that are this worker's and not done yet."""
        for leaf in self._leaves[self._peers.rank]:
            seed_everything(self.seed, step, leaf)
            buffer = self._gradients.zeroed()
            self._gradients.attach(buffer)
            loss = loss_of(leaf)
            loss.backward()
            self._gradients.collect(buffer)
            self._gradients.detach()
            self._losses[leaf] = float(loss.detach())
            self._sums[leaf, leaf + 1] = buffer
            self._gradients.give_back(merge_local(self._sums, self.num_vranks))
            self._poll()

    def _my_probes(self) -> range:
        share = [
            self._num_probes * rank // self.world_size for rank in (self._peers.rank, self._peers.rank + 1)
        ]
        return range(*share)

    def _measure(self) -> None:
        """Do this worker's probes that are not done yet."""
        for number in self._my_probes():
            if self._probe is not None and number not in self._probes:
                self._probes[number] = self._probe(number)
                self._poll()

    def _exchange(self) -> tuple[Tensor, Tensor]:
        """Return the sum over all leaves, and every member's generation, losses and probes."""
        newest = self._link.group.generation if self._link.group else 0
        own = [self._losses.get(leaf, 0.0) for leaf in range(self.num_vranks)]
        mine = self._my_probes()
        probed = [self._probes[n] if n in mine else 0.0 for n in range(self._num_probes)]
        words = torch.tensor([float(newest), *own, *probed], dtype=torch.float64)
        nodes = final_nodes(self.num_vranks, self._kept, self._leaves)
        total = self._gradients.any()
        peers, sums = self._peers, dict(self._sums)

        def work() -> Tensor:
            return exchange(peers, sums, nodes, self.num_vranks, total, words)

        if self.world_size == 1:
            return total, work()
        return total, abandonable(work, self._obsolete(EXCHANGE_GRACE_S))

    def _commit(self, total: Tensor, words: Tensor, lr: float | None) -> None:
        """Apply the update; change over to a newer generation when a member has seen one."""
        total.mul_(1.0 / self.num_vranks)
        self.grad_norm = clip_(total, self.max_grad_norm)
        if lr is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
        self._gradients.publish(total)
        self.optimizer.step()
        self._gradients.detach()
        numbers = words[:, 1:].sum(dim=0).tolist()
        self.loss = sum(numbers[: self.num_vranks]) / self.num_vranks
        self.probed = numbers[self.num_vranks :]
        self._gradients.give_back([*self._sums.values(), total])
        self._sums.clear()
        self._losses.clear()
        self._probes.clear()
        self.committed += 1
        self._share_out([{"nodes": []}] * self.world_size)
        if int(words[:, 0].max()) > self.generation:
            self._regroup()

    def _keep_sums(self) -> None:
        """Copy finished sums: a helper left behind may still be sending the old buffers."""
        self._sums = {node: buffer.clone() for node, buffer in self._sums.items()}

    def _share_out(self, headers: list[dict[str, Any]]) -> None:
        """Settle who keeps which sums and who computes which leaves, the same on every worker."""
        held = [[(low, high) for low, high in header["nodes"]] for header in headers]
        self._kept = choose_kept(held)
        self._leaves = assign_leaves(self.num_vranks, self._kept)
        mine = set(self._kept[self._peers.rank])
        for node in [n for n in self._sums if n not in mine]:
            self._gradients.give_back([self._sums.pop(node)])
        covered = {leaf for node in mine for leaf in range(*node)}
        self._losses = {leaf: loss for leaf, loss in self._losses.items() if leaf in covered}

    # -- membership ------------------------------------------------------------------------------------

    def _told(self) -> bool:
        return self._link.notice is not None

    def _leave_if_told(self) -> None:
        if self._link.notice is not None:
            raise Leaving(self._link.notice)

    def _member_lost(self) -> bool:
        """Whether a newer generation lacks a member of ours."""
        newest, ours = self._link.group, self._group
        return newest is not None and ours is not None and newest is not ours and newest.lacks(ours)

    def _poll(self) -> None:
        """At a micro-batch boundary: leave when told to; meet again when a member is missing."""
        self._leave_if_told()
        if self._member_lost():
            raise PeersLost("a member left")

    def _obsolete(self, grace_s: float) -> Callable[[], bool]:
        """Return a check that turns true ``grace_s`` after this generation lost a member (or us)."""
        since = [0.0]

        def check() -> bool:
            if not self._member_lost() and not self._told():
                return False
            since[0] = since[0] or time.monotonic()
            return time.monotonic() - since[0] >= grace_s

        return check

    def _regroup(self) -> None:
        """Meet the newest generation's members; return when in step with them."""
        started = time.perf_counter()
        failed = self._peers.generation
        self._peers.close()
        while not self._join(*self._next_generation(failed)):
            failed = max(failed, self._peers.generation)
            self._peers.close()
        elapsed_ms = (time.perf_counter() - started) * 1000
        self.events.append(
            {
                "event": "regroup",
                "generation": self.generation,
                "world_size": self.world_size,
                "step": self.committed,
                "ms": round(elapsed_ms, 2),
            }
        )

    def _next_generation(self, failed: int) -> tuple[Membership, int]:
        """Wait for a generation newer than ``failed`` that has us in it; return it and our rank."""
        patience_s = HEAL_AFTER_S
        while not self._link.wait(
            lambda: self._told() or self._rank_in_newer(failed) is not None, patience_s
        ):
            # The first generation forms when enough members are ready: that may take long.
            if self._group is not None and self._host is not None:
                self._link.ready(self._host.endpoint)
                patience_s = min(patience_s * 2, 60.0)
        self._leave_if_told()
        found = self._rank_in_newer(failed)
        return found if found is not None else self._next_generation(failed)

    def _rank_in_newer(self, failed: int) -> tuple[Membership, int] | None:
        """Return the newest generation and our rank in it, if it is newer than ``failed`` and has us."""
        group = self._link.group
        if group is None or group.generation <= failed:
            return None
        rank = group.rank_of(self._link.index)
        return None if rank is None else (group, rank)

    def _join(self, group: Membership, rank: int) -> bool:
        """Meet, and bring those who are behind up to date; False when this generation came to nothing."""
        header = {
            "step": self.committed,
            "nodes": sorted(self._sums),
            "contract": self.contract,
        }
        host = self._host.host if self._host else "127.0.0.1"
        # Whatever becomes of it, this generation is not tried again.
        self._peers, self._group = Peers(group.generation, rank, [header] * len(group.members)), group
        try:
            self._peers = abandonable(
                lambda: Peers.meet(group, rank, host, header),
                lambda: self._told() or self._link.group is not group,
            )
            self._check_contracts()
            self._catch_up()
        except PeersLost:
            return False
        return True

    def _check_contracts(self) -> None:
        if self._ignore_contract:
            return
        for rank, header in enumerate(self._peers.headers):
            require_contract(header["contract"], self.contract, f"the training of member {rank}")

    def _catch_up(self) -> None:
        """Bring those who are behind to the newest committed step, and share out the work."""
        peers = self._peers
        steps = [header["step"] for header in peers.headers]
        source = choose_source(steps)
        behind = [rank for rank, step in enumerate(steps) if rank != source and step != max(*steps, 0)]
        obsolete = self._obsolete(EXCHANGE_GRACE_S)
        if peers.rank == source:
            if steps[source] < 0:
                self.committed = self._restore()
            if behind:
                state = collect(self.model, self.optimizer)
                progress = Progress(self.committed, self.loss, state.extra)  # JSON writes NaN as null
                abandonable(lambda: send_state(peers, behind, state, progress), obsolete)
                abandonable(peers.confirm, obsolete)
        elif peers.rank in behind:
            state, progress = abandonable(lambda: receive_state(peers, source), obsolete)
            restore(self.model, self.optimizer, state)
            self.probed = []
            self._probes.clear()
            self.committed = progress.committed
            self.loss = float("nan") if progress.loss is None else progress.loss
        newest = max(steps)
        self._share_out([h if h["step"] == newest else {"nodes": []} for h in peers.headers])

    def _leave(self, notice: Notice) -> None:
        """Checkpoint when the whole job stops, hang up, say so, and end the process (with status 0)."""
        whole_job = notice.new_size == 0 or (notice.new_size < 0 and self.world_size == 1)
        finished = notice.cause == "completed"
        if whole_job and not finished and self.is_leader and self.committed >= 0 and self._on_stop:
            self._on_stop()
        self._peers.close()
        self._link.released()
        if self._link.path:
            end_process()
        raise SystemExit(self._signals.exit_status)


def end_process() -> None:
    """End this process now, once its files are written: somebody waits for its cores and memory.

    An orderly end of an interpreter with torch in it takes about a second, in which nothing is left to do.
    """
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.current_thread():
            thread.join()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)
