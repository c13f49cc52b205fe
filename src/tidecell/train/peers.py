"""One generation of workers: they meet, and send each other tensors over gloo.

Every worker hosts a small key-value store from its start; a generation meets in the store of its first
member, under a prefix of its own, so a dead leader or a late message of an old generation does no harm.
Blocking calls run on a helper thread that can be abandoned: gloo cannot be woken while it waits for a
peer that hangs. A helper never writes to what the training owns, so abandoning it is safe.
"""

from __future__ import annotations

import datetime
import json
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from tidecell.task_link import Membership

T = TypeVar("T")

# A peer may be busy for long (validation, a checkpoint). That one is lost is said by the agent, not by time.
PEER_TIMEOUT = datetime.timedelta(minutes=30)
CONNECT_TIMEOUT = datetime.timedelta(seconds=20)
POLL_S = 0.02


class PeersLost(Exception):
    """This generation cannot go on: a peer left, died, or the group has moved on."""


def abandonable(work: Callable[[], T], obsolete: Callable[[], bool]) -> T:
    """Run blocking work on a helper thread; leave it behind once it is obsolete.

    Raises:
        PeersLost: It was left behind, or torch reported a lost connection.
    """
    done = threading.Event()
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except RuntimeError as error:  # what gloo and the store raise
            # Only its text is kept: the traceback holds buffers, and those hold connections open
            # that the other members wait on.
            errors.append(PeersLost(str(error).partition("\n")[0]))
        except Exception as error:
            errors.append(error)
        done.set()

    threading.Thread(target=run, name="tidecell-peers", daemon=True).start()
    while not done.wait(POLL_S):
        if obsolete():
            raise PeersLost("the group has moved on")
    if errors:
        raise errors.pop()
    return results.pop()


class Host:
    """This worker's store, in which a generation meets when this worker is its first member.

    Args:
        host: Address to listen on and to announce.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        self._store = dist.TCPStore(host, 0, None, True, PEER_TIMEOUT, wait_for_workers=False)

    @property
    def endpoint(self) -> str:
        """Where peers meet this worker."""
        return f"{self.host}:{self._store.port}"


class Peers:
    """The members of one generation, connected.

    Attributes:
        headers: What each member said of itself when they met, by rank.
    """

    def __init__(
        self,
        generation: int,
        rank: int,
        headers: list[dict[str, Any]],
        gloo: Any = None,
        place: Any = None,
    ) -> None:
        self.generation = generation
        self.rank = rank
        self.headers = headers
        self._gloo = gloo
        self._place = place

    @property
    def size(self) -> int:
        """Number of members."""
        return len(self.headers)

    @classmethod
    def alone(cls) -> Peers:
        """Return the generation of a worker without a cell."""
        return cls(0, 0, [{}])

    @classmethod
    def meet(cls, group: Membership, rank: int, host: str, header: dict[str, Any]) -> Peers:
        """Meet the members of a generation; blocks until all are there.

        Args:
            host: Address of the network to bind to.
            header: What the others should know of this member (JSON).

        Raises:
            RuntimeError: The store or a peer went away.
        """
        address, _, port = group.members[0].endpoint.rpartition(":")
        # A connection of one's own, also to one's own store: a helper left behind holds its lock.
        store = dist.TCPStore(address, int(port), None, False, CONNECT_TIMEOUT, wait_for_workers=False)
        store.set_timeout(PEER_TIMEOUT)
        place = dist.PrefixStore(f"tidecell/{group.generation}", store)
        place.set(f"here/{rank}", json.dumps(header))
        size = len(group.members)
        headers = [json.loads(place.get(f"here/{other}")) for other in range(size)]
        gloo = _connect(place, rank, size, host) if size > 1 else None
        return cls(group.generation, rank, headers, gloo, place)

    def transfer(self, sends: Sequence[tuple[int, Tensor]], receives: Sequence[tuple[int, Tensor]]) -> None:
        """Send and receive tensors; those between two members arrive in the order they were listed.

        Raises:
            RuntimeError: A peer went away.
        """
        if not sends and not receives:
            return
        gloo = self._gloo
        if gloo is None:
            raise RuntimeError("this generation was closed")
        works = [gloo.recv([t], rank, 0) for rank, t in receives if t.numel()]
        works += [gloo.send([t], rank, 0) for rank, t in sends if t.numel()]
        for work in works:
            work.wait()

    def confirm(self) -> None:
        """Say that the state that was sent did not change meanwhile."""
        self._place.set("confirmed", "1")

    def wait_confirmed(self) -> None:
        """Wait until the sender of a state has called ``confirm``."""
        self._place.get("confirmed")

    def close(self) -> None:
        """Hang up; peers that wait for this member see a lost connection at once."""
        self._gloo = None
        self._place = None


def _connect(store: Any, rank: int, size: int, host: str) -> Any:
    options = dist.ProcessGroupGloo._Options()
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
    options._timeout = PEER_TIMEOUT
    return dist.ProcessGroupGloo(dist.PrefixStore("gloo", store), rank, size, options)


def send_bytes(peers: Peers, to: int, content: bytes) -> None:
    """Send a byte string: its length, then the bytes."""
    length = torch.tensor([len(content)], dtype=torch.int64)
    peers.transfer([(to, length), (to, torch.frombuffer(bytearray(content), dtype=torch.uint8))], [])


def receive_bytes(peers: Peers, sender: int) -> bytes:
    """Receive a byte string sent by ``send_bytes``."""
    length = torch.empty(1, dtype=torch.int64)
    peers.transfer([], [(sender, length)])
    content = torch.empty(int(length), dtype=torch.uint8)
    peers.transfer([], [(sender, content)])
    return content.numpy().tobytes()
