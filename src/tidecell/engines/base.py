"""What every engine does: carry out commands, and report inputs. Nothing else crosses this line."""

from __future__ import annotations

from typing import Protocol

from tidecell.structs.messages import Command


class Engine(Protocol):
    """Carries out commands on machines.

    An engine answers with inputs only (``MachineSeen``, ``TaskUp``, ``TaskDown``), at least once each
    and in order per machine; it repeats those that were not acknowledged after a reconnect.
    """

    def send(self, command: Command) -> None:
        """Carry out a command, soon. Never blocks or raises: what cannot be done comes back as an input."""

    def acknowledge(self, machine: str, agent_seq: int) -> None:
        """Say that inputs up to this number are durable and need not be repeated."""
