"""The cell's state as the router's table. Pure: the router is told a value, never a change."""

from __future__ import annotations

from collections.abc import Collection

from msgspec.structs import replace

from tidecell.cell.state import CellState, Job, Task
from tidecell.structs.job import TaskState
from tidecell.structs.traffic import Routing, Rule, TrafficPolicy
from tidecell.traffic.table import Endpoint, Route, Table


def endpoint_id(job: Job, task: Task) -> str:
    """Return the name of one start of one replica, as router and control plane use it."""
    return f"{job.uid}/{task.index}@{task.epoch}"


def build_table(state: CellState, version: int, token_hashes: tuple[str, ...]) -> Table:
    """Return what the router should serve now.

    Args:
        state: The cell.
        version: Number of this table within the control plane's epoch.
        token_hashes: SHA-256 (hex) of accepted bearer tokens.
    """
    jobs = sorted((j for j in state.live_jobs() if j.spec.is_service), key=lambda j: j.uid)
    routes = tuple(_route(state, job) for job in jobs)
    routing = state.routing or Routing()
    services = {route.service for route in routes}
    keys = tuple(key.hash for tenant in routing.tenants for key in tenant.keys)
    return Table(
        version=version,
        epoch=state.epoch,
        routes=routes,
        tokens=token_hashes + keys,
        rules=tuple(rule_among(rule, services) for rule in routing.rules),
        tenants=routing.tenants,
        aliases=routing.aliases,
    )


def rule_among(rule: Rule, services: Collection[str]) -> Rule:
    """Return a rule without the services that are not there now: one that went must not stop the rest."""
    splits = tuple(split for split in rule.splits if split.service in services)
    if not sum(split.weight for split in splits) > 0:
        splits = ()
    canary, shadow = rule.canary, rule.shadow
    return replace(
        rule,
        splits=splits,
        canary=canary if canary is not None and canary.service in services else None,
        shadow=shadow if shadow is not None and shadow.service in services else None,
        fallback=tuple(service for service in rule.fallback if service in services),
    )


def _route(state: CellState, job: Job) -> Route:
    endpoints = tuple(e for t in job.tasks if (e := _endpoint(state, job, t)) is not None)
    traffic = job.spec.traffic or TrafficPolicy()
    return Route(service=job.spec.name, models=job.spec.models, endpoints=endpoints, traffic=traffic)


def _endpoint(state: CellState, job: Job, task: Task) -> Endpoint | None:
    """A replica is in the table while requests may be on it: ready, or leaving and not yet gone."""
    if not task.port or task.machine not in state.machines:
        return None
    host = state.machines[task.machine].spec.address
    if task.state is TaskState.RUNNING and task.ready:
        return Endpoint(endpoint_id(job, task), host, task.port, "ready")
    if task.state is TaskState.RESIZING:
        return Endpoint(endpoint_id(job, task), host, task.port, "draining")
    return None
