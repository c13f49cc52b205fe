"""The part of the API that gives the whole cell away, as a document without secrets."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.responses import Response

from tidecell.cell.export import export_state
from tidecell.server.control import ControlPlane
from tidecell.server.openapi import Operation


class SnapshotApi:
    """The handler, over one control plane."""

    def __init__(self, control: ControlPlane) -> None:
        self._control = control

    async def snapshot(self, request: Request) -> Response:
        """Return the cell as it is now."""
        return Response(export_state(self._control.state, time.time()), media_type="application/json")


OPERATIONS = (
    Operation("GET", "/v1/snapshot", "The cell as a document without secrets, for what-if questions"),
)
