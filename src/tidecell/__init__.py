"""Tidecell: training and serving on one pool of machines; capacity moves between them like a tide.

Inside a task, ``tidecell.notice()`` is None, or says that the task should leave, why and by when.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tidecell.task_link import notice

__version__ = "0.1.0"
__all__ = ["__version__", "notice"]


def __getattr__(name: str) -> Any:
    """Import on first use: the command line starts faster without."""
    if name == "notice":
        from tidecell.task_link import notice

        return notice
    raise AttributeError(f"module 'tidecell' has no attribute '{name}'")
