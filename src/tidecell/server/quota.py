"""Quota as the API shows and takes it."""

from __future__ import annotations

from collections.abc import Iterator

from tidecell.cell.quota import gate_of
from tidecell.cell.snapshot import take_snapshot
from tidecell.cell.state import CellState
from tidecell.client.quota_views import QuotaStatus
from tidecell.scheduler.quota import Account, Gate
from tidecell.structs.job import BAND_WORDS, Band
from tidecell.structs.tenant import UNLIMITED, Amounts, Quota, Team


def quota_status(state: CellState, now_s: float, team: str = "") -> Iterator[QuotaStatus]:
    """Yield every team at every band at which it has a quota or uses something, in the file's order."""
    gate = gate_of(state, now_s)
    if gate is None or state.policy is None:
        return
    waiting = _waiting(state, gate, now_s)
    for entry in state.policy.teams:
        if team and entry.name != team:
            continue
        for band in reversed(BAND_WORDS):
            quota = entry.quotas.get(band.word)
            account = gate.look(entry.name, band)
            asked = waiting.get((entry.name, band), {})
            if quota is not None or asked or account.staying or account.leaving:
                yield _status(gate, entry, account, quota, asked, now_s)


def _waiting(state: CellState, gate: Gate, now_s: float) -> dict[tuple[str, Band], Amounts]:
    """Return what waiting gangs and services ask for, by team and band."""
    total: dict[tuple[str, Band], Amounts] = {}
    for job in take_snapshot(state, now_s).jobs:
        staying = sum(1 for t in job.tasks if t.machine)
        missing = min(job.spec.replicas.min, job.desired) - staying - len(job.done)
        pending = [t.index for t in job.tasks if t.pending]
        indices = pending if job.spec.is_service else pending[: max(0, missing)]
        account = gate.account(job.spec)
        entry = total.setdefault((account.team, account.band), {})
        for component, amount in gate.need(job, indices).items():
            entry[component] = entry.get(component, 0) + amount
    return total


def _status(
    gate: Gate, team: Team, account: Account, quota: Quota | None, waiting: Amounts, now_s: float
) -> QuotaStatus:
    names = [c for c in gate.components if account.own(c) < UNLIMITED]
    used = {c: n for c in gate.components if (n := account.used(c))}
    borrowed = {c: n for c in names if (n := used.get(c, 0) - account.own(c)) > 0}
    if account.band is Band.BEST_EFFORT:
        borrowed = {}
    return QuotaStatus(
        team=team.name,
        band=account.band.word,
        valid=account.quota is not None or account.band is Band.BEST_EFFORT,
        cohort=team.cohort,
        weight=team.weight,
        own=dict(account.quota.amounts) if account.quota is not None else {},
        used=used,
        leaving={c: n for c in gate.components if (n := account.leaving.get(c, 0))},
        borrowed=borrowed,
        most={c: n for c in names if account.own(c) < (n := account.most(c)) < UNLIMITED},
        lent=_lent(gate, account, names),
        waiting=waiting,
        share=round(gate.share(account), 4),
        from_s=quota.from_s if quota is not None else 0.0,
        until_s=quota.ends_s if quota is not None else 0.0,
        renews_s=quota.renews_s(now_s) if quota is not None else 0.0,
        users=team.users,
    )


def _lent(gate: Gate, account: Account, names: list[str]) -> Amounts:
    """What others borrow, shared over those who do not use their own, in proportion."""
    out: Amounts = {}
    for component in names:
        mates = gate.mates(account)
        unused = {m.team: max(0, m.own(component) - m.used(component)) for m in mates}
        borrowed = sum(max(0, m.used(component) - m.own(component)) for m in mates)
        total = sum(unused.values())
        if borrowed and total and unused[account.team]:
            out[component] = min(unused[account.team], borrowed * unused[account.team] // total)
    return out
