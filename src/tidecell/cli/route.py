"""`tide route`: where requests go, who may send how many, and what of that is used."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from tidecell.cli.show import NamesToo, err, out, print_json, print_table
from tidecell.client.client import Client
from tidecell.client.routing_diff import describe_routing_change
from tidecell.client.routing_file import parse_routing
from tidecell.client.routing_views import RouteStatus, RoutingView, RuleStatus, TenantStatus
from tidecell.structs.errors import NotFoundError, TidecellError
from tidecell.structs.traffic import Limits, Match, Routing


@click.group(cls=NamesToo, no_args_is_help=False)
def route() -> None:
    """Show where requests go and what tenants use; `tide route NAME` one service, rule or tenant.

    \b
    tide route apply -f routes.yaml  set aliases, rules and tenants (docs/router-policies.md); asks first
    tide route clear                 take them away, keys included
    """


@route.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def show(name: str | None, as_json: bool) -> None:
    """Show routes, rules and tenants with their limits and use."""
    with Client.from_home() as client:
        view = client.routing()
    if name:
        view = _only(view, name)
    if as_json:
        print_json(view)
        return
    if not view.router_up:
        err.print("the router does not answer: load and use are not known")
    if view.routes:
        columns = (
            "SERVICE",
            "MODELS",
            "BALANCE",
            "READY",
            "IN FLIGHT",
            "QUEUED",
            "PER S",
            "TTFT P95",
            "FAILED",
        )
        print_table(columns, [_route_row(r) for r in view.routes])
    if view.rules:
        print_table(("RULE", "MATCH", "GOES TO"), [_rule_row(r) for r in view.rules])
    if view.tenants:
        heads = ("TENANT", "KEYS", "IN FLIGHT", "USED OF ITS LIMITS", "WEIGHT", "CEILING")
        print_table(heads, [_tenant_row(t) for t in view.tenants])
    if not (view.routes or view.rules or view.tenants):
        err.print("no services, rules or tenants (tide route apply -f routes.yaml)")


def _only(view: RoutingView, name: str) -> RoutingView:
    found = msgspec.structs.replace(
        view,
        routes=tuple(r for r in view.routes if name in (r.service, *r.models, *r.aliases)),
        rules=tuple(r for r in view.rules if name == r.rule.name or name in r.rule.services()),
        tenants=tuple(t for t in view.tenants if name == t.name),
    )
    if not (found.routes or found.rules or found.tenants):
        names = [r.service for r in view.routes] + [r.rule.name for r in view.rules]
        known = ", ".join(names + [t.name for t in view.tenants]) or "there are none"
        raise NotFoundError(f"no service, model, rule or tenant named '{name}'", f"known: {known}")
    return found


def _route_row(row: RouteStatus) -> tuple[str, ...]:
    models = ", ".join(row.models + tuple(f"{alias} (alias)" for alias in row.aliases)) or "-"
    ready = f"{row.ready} ({row.draining} draining)" if row.draining else str(row.ready)
    failed = ", ".join(f"{count} {outcome}" for outcome, count in row.failed_total.items()) or "-"
    ttft = f"{row.ttft_p95_ms:.0f} ms" if row.ttft_p95_ms else "-"
    load = (str(row.in_flight), str(row.queued), f"{row.rate:.1f}")
    return (row.service, models, row.balance, ready, *load, ttft, failed)


def _rule_row(row: RuleStatus) -> tuple[str, ...]:
    rule = row.rule
    parts = [f"{split.service} ({split.weight:g})" for split in rule.splits]
    if rule.canary is not None:
        parts.append(f"{rule.canary.share:.0%} to {rule.canary.service} by {rule.canary.by}")
    if rule.shadow is not None:
        parts.append(f"copies of {rule.shadow.share:.0%} to {rule.shadow.service}")
    if rule.fallback:
        parts.append(f"else {', '.join(rule.fallback)}")
    missing = f" (not there now: {', '.join(row.missing)})" if row.missing else ""
    return (rule.name, _match(rule.match), "; ".join(parts) + missing)


def _match(match: Match) -> str:
    plain = msgspec.to_builtins(match)
    headers = plain.pop("headers", {})
    parts = [f"{key} {value}" for key, value in plain.items()]
    return ", ".join(parts + [f"{key}: {value}" for key, value in headers.items()]) or "everything"


def _tenant_row(row: TenantStatus) -> tuple[str, ...]:
    keys = ", ".join(key.name for key in row.keys) or "none"
    return (
        row.name,
        keys,
        str(row.in_flight),
        describe_use(row.limits, row.used),
        f"{row.weight:g}",
        row.ceiling,
    )


def describe_use(limits: Limits, used: dict[str, int]) -> str:
    """Return limits with what is used of them: ``12 of 600 requests per minute``."""
    parts = [
        f"{used.get(name, 0):,} of {limit:,} {name.replace('_', ' ')}"
        for name in ("requests_per_minute", "tokens_per_minute", "tokens_per_day")
        if (limit := getattr(limits, name))
    ]
    if limits.concurrency:
        parts.append(f"{limits.concurrency} at once")
    return ", ".join(parts) or "no limits"


@route.command()
@click.option("-f", "--file", "path", required=True, help="YAML file, or - for standard input.")
@click.option("--dry-run", is_flag=True, help="Check the file; change nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def apply(path: str, dry_run: bool, yes: bool) -> None:
    """Show what a file changes, and set aliases, rules and tenants from it; it replaces all that was set."""
    routing = _read(path)
    counts = f"{len(routing.aliases)} aliases, {len(routing.rules)} rules, {len(routing.tenants)} tenants"
    if dry_run:
        err.print(f"{path}: {counts}, no mistakes")
        return
    if path == "-" and not yes:
        hint = "look at it with --dry-run, then say -y"
        raise TidecellError("nobody can be asked while the file comes from standard input", hint)
    with Client.from_home() as client:
        if _change(client, routing, yes):
            err.print(f"set: {counts}     tide key create TENANT makes keys")


@route.command()
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def clear(yes: bool) -> None:
    """Take all aliases, rules and tenants away; the tenants' keys end."""
    with Client.from_home() as client:
        _change(client, Routing(), yes)


def _change(client: Client, routing: Routing, yes: bool) -> bool:
    """Show the difference, ask, and set; return whether anything was set."""
    lines = describe_routing_change(client.routing_settings(), routing)
    for line in lines:
        out.print(line, markup=False)
    if lines == ("unchanged",):
        return False
    if not yes and not click.confirm("apply?", default=True, err=True):
        raise click.exceptions.Exit(1)
    client.set_routing(routing)
    return True


def _read(path: str) -> Routing:
    """Read and check a routing file; ``-`` is standard input."""
    if path == "-":
        return parse_routing(sys.stdin.read(), "standard input")
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no routing file '{path}'", "give its path with -f") from error
    except (OSError, UnicodeDecodeError) as error:
        raise TidecellError(f"{path} cannot be read: {error}") from error
    return parse_routing(text, path)
