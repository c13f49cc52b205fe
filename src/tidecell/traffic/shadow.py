"""A copy of a request whose answer nobody sees: counted and logged under its own service, and dropped."""

from __future__ import annotations

from copy import copy

from tidecell.traffic.exchange import SHADOW, Context, Exchange
from tidecell.traffic.fleet import Service
from tidecell.traffic.request import Request


class Nobody:
    """The client of a shadow."""

    def write(self, data: bytes) -> None:
        """Drop it."""

    def exchange_finished(self, keep_alive: bool) -> None:
        """Nothing follows."""

    def exchange_broken(self, is_framed: bool) -> None:
        """Nobody waits for the rest."""

    def tunnel_started(self) -> None:
        """Does not happen: upgrades are not shadowed."""

    def hold(self, paused: bool) -> None:
        """Does not happen: bodies that are passed through are not shadowed."""


_NOBODY = Nobody()


def send_copy(context: Context, service: Service | None, request: Request, sequence: int) -> None:
    """Send a copy of a request; of those that cannot be copied, and to a service that is not there, none."""
    if service is not None and not request.streams_body and not request.head.upgrade:
        models = service.route.models
        if request.model and models and request.model not in models:
            request = copy(request)
            request.ask_for(models[0])
        Exchange(context, _NOBODY, service, request, sequence, SHADOW).start()
