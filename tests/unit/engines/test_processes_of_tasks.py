"""Which processes count for which task."""

from __future__ import annotations

from tidecell.engines.process import Seen, by_task


def seen(pid: int, parent: int, session: int) -> Seen:
    return Seen(pid, parent, session, 0.0, 0, 0)


def test_sessions_that_descend_from_a_task_count_for_it() -> None:
    """A terminal's shell leads a session of its own, and so may what runs in it."""
    table = [
        seen(1, 0, 1),
        seen(10, 1, 10),  # a task
        seen(11, 10, 10),
        seen(12, 10, 12),  # its shell, on a terminal
        seen(13, 12, 12),
        seen(14, 13, 14),  # a tool with a session of its own
        seen(20, 1, 20),  # another task
        seen(30, 1, 30),  # none of ours
        seen(41, 40, 40),  # its leader is gone
    ]
    found = by_task(table, {10, 20})
    assert {task: sorted(p.pid for p in mine) for task, mine in found.items()} == {
        10: [10, 11, 12, 13, 14],
        20: [20],
    }
