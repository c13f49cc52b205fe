"""Membership of an elastic group: who trains together from now on.

Pure bookkeeping, kept by the agent. Members say they are ready, are told to leave, or are gone; each
change that leaves at least ``min_members`` makes one new generation, which the agent announces to its
members (docs/task-contract.md). It does not know sockets, processes or torch.

The idea of numbered membership epochs is that of Horovod Elastic and of torchelastic's rendezvous;
here a change costs the members no restart.
"""

from __future__ import annotations

from typing import Any


class Group:
    """Members of one elastic job.

    Args:
        min_members: A generation with fewer members is not announced; the survivors wait.

    Attributes:
        generation: Number of the newest generation that was announced; 0: none yet.
    """

    def __init__(self, min_members: int) -> None:
        self.min_members = min_members
        self.generation = 0
        self._endpoints: dict[int, str] = {}
        self._leaving: set[int] = set()

    @property
    def members(self) -> tuple[int, ...]:
        """Indices of the members that are ready and stay, lowest first."""
        return tuple(sorted(self._endpoints))

    def ready(self, index: int, endpoint: str, seen: int = 0) -> dict[str, Any] | None:
        """Take in a member, or let the members meet again when it is one already.

        A member that lost its peers although nobody left says ``ready`` again, and a new generation
        heals the group. One that was told to leave is not taken in before it is gone.

        Args:
            endpoint: Where its peers meet it, ``host:port``.
            seen: The newest generation the member knows of. After a restart of the agent this
                carries the numbers on, so that none is used twice.

        Returns:
            The new generation's message, or None when there is none to announce.
        """
        self.generation = max(self.generation, seen)
        if index in self._leaving:
            return None
        self._endpoints[index] = endpoint
        return self._announce()

    def leaving(self, index: int) -> dict[str, Any] | None:
        """Leave out a member that was told to leave; see ``ready`` for what is returned."""
        self._leaving.add(index)
        return self._leave_out(index)

    def gone(self, index: int) -> dict[str, Any] | None:
        """Leave out a member whose process ended; its index may come back with ``ready``."""
        self._leaving.discard(index)
        return self._leave_out(index)

    def _leave_out(self, index: int) -> dict[str, Any] | None:
        if self._endpoints.pop(index, None) is None:
            return None
        return self._announce()

    def _announce(self) -> dict[str, Any] | None:
        if not self._endpoints or len(self._endpoints) < self.min_members:
            return None
        self.generation += 1
        members = [{"index": i, "endpoint": self._endpoints[i]} for i in self.members]
        return {"type": "group", "generation": self.generation, "members": members}
