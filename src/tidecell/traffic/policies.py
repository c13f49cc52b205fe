"""A table's policies: the one place where what a table says becomes what decides. Pure."""

from __future__ import annotations

from collections.abc import Callable

from tidecell.traffic.admission import TrafficAdmission
from tidecell.traffic.balance import Rng
from tidecell.traffic.balancers import ServiceBalancer
from tidecell.traffic.policy import Policies
from tidecell.traffic.table import Table


class TrafficPolicies(Policies):
    """Admission and balancers of one table, as it says.

    Args:
        table: The table.
        rng: Source of the balancers' choices.
        previous: What was in force before; what it has learned is kept where its policy is the same.
        offset_s: Unix time minus the data plane's clock; days end by it.
        is_ready: Whether a service has a replica to try; None: by the table alone.

    Attributes:
        traffic: Admission for the whole router.
        services: The balancers by service.
    """

    def __init__(
        self,
        table: Table,
        rng: Rng,
        previous: TrafficPolicies | None = None,
        offset_s: float = 0.0,
        is_ready: Callable[[str], bool] | None = None,
    ) -> None:
        self._has_ready = {
            route.service: any(endpoint.state == "ready" for endpoint in route.endpoints)
            for route in table.routes
        }
        if previous is None:
            self.traffic = TrafficAdmission(table, offset_s, is_ready or self._is_ready)
        else:
            self.traffic = previous.traffic
            self.traffic.update(table)
            self.traffic.ask_ready(is_ready or self._is_ready)
        known = {} if previous is None else previous.services
        self.services: dict[str, ServiceBalancer] = {}
        for route in table.routes:
            old = known.get(route.service)
            kept = old if old is not None and old.policy == route.traffic else None
            balancer = kept or ServiceBalancer(route.traffic, rng)
            balancer.keep([endpoint.id for endpoint in route.endpoints])
            self.services[route.service] = balancer
        self.admission = self.traffic
        self.balancers = dict(self.services)

    def _is_ready(self, service: str) -> bool:
        return self._has_ready.get(service, False)
