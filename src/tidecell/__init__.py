"""Tidecell: training and serving on one pool of machines; capacity moves between them like a tide.

``@tidecell.job`` makes a function a job; ``apply``, ``plan``, ``why``, ``run`` and ``jobs`` are what the
commands of these names do (``docs/python.md``). Inside a task, ``tidecell.notice()`` is None, or says that
the task should leave, why and by when; ``tidecell.resources()`` is what it may use now.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tidecell.sdk import Run, apply, job, jobs, plan, run, why
    from tidecell.task_link import notice, resources

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "apply", "job", "jobs", "notice", "plan", "resources", "run", "why"]

_HOMES = {"notice": "tidecell.task_link", "resources": "tidecell.task_link"}  # all other names: tidecell.sdk


def __getattr__(name: str) -> Any:
    """Import on first use: the command line starts faster without."""
    if name in __all__:
        return getattr(importlib.import_module(_HOMES.get(name, "tidecell.sdk")), name)
    raise AttributeError(f"module 'tidecell' has no attribute '{name}'")
