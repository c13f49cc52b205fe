"""How several router processes share one limit: each holds a part, and the parts never add up to more. Pure.

The coordinator hears from each router about once a second what it holds, what it used and what it was asked
for, and answers with the part it may hold from now on. A part shrinks at once and grows only by what nobody
holds: what a router was granted counts as held until its report shows that it has taken a smaller one, and
never less than it has used. So the sum of what is used stays within the limit, whatever is lost or late.

Without the coordinator every router keeps its part: the limit holds, and nobody is shut out of what it was
given. A router that does not report keeps its part booked until the coordinator is told that it is gone; then
what it held of a day's limit counts as used, since nobody knows.

Source: O'Neil, The Escrow Transactional Method, TODS 1986.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class Report(msgspec.Struct, frozen=True):
    """What a router says of one limit.

    Attributes:
        serial: Of the last grant that it has taken.
        part: What it holds.
        used: What is used or reserved in the window.
        wanted: What it was asked for in the window, refused requests included.
    """

    serial: int = 0
    part: int = 0
    used: int = 0
    wanted: int = 0


class Grant(msgspec.Struct, frozen=True):
    """What a router may hold.

    Attributes:
        serial: Larger than that of all grants before.
        part: What it may hold.
    """

    serial: int
    part: int


class _Holder(msgspec.Struct):
    report: Report
    grants: list[Grant]  # not yet seen taken, oldest first

    def holds(self) -> int:
        """Return the most that it may hold, or has used."""
        return max(self.report.part, self.report.used, *(grant.part for grant in self.grants), 0)


class Coordinator:
    """One limit's parts.

    Args:
        limit: The whole.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._holders: dict[str, _Holder] = {}
        self._lost = 0
        self._serial = 0

    def report(self, router: str, report: Report) -> Grant:
        """Take in a router's report; return what it may hold now."""
        holder = self._holders.get(router)
        if holder is None:
            holder = self._holders[router] = _Holder(report, [])
        if report.serial >= holder.report.serial:  # else an old one that came late
            holder.report = report
            holder.grants = [grant for grant in holder.grants if grant.serial > report.serial]
        target = self._target(router)
        held_by_others = sum(other.holds() for name, other in self._holders.items() if name != router)
        most = max(0, self.limit - self._lost - held_by_others)
        self._serial += 1
        grant = Grant(self._serial, max(min(target, most), min(holder.report.used, most)))
        holder.grants.append(grant)
        return grant

    def gone(self, router: str, is_forgotten: bool = False) -> None:
        """Note that a router process is gone for good.

        Args:
            router: Which.
            is_forgotten: Its use no longer counts: the window in which it held its part is over.
        """
        holder = self._holders.pop(router, None)
        if holder is not None and not is_forgotten:
            self._lost += holder.holds()

    def window_over(self) -> None:
        """Note that the window of all that was lost has ended."""
        self._lost = 0

    def held(self) -> int:
        """Return what is held or lost in all; never more than the limit unless that was lowered."""
        return self._lost + sum(holder.holds() for holder in self._holders.values())

    def _target(self, router: str) -> int:
        """Return a router's fair part: what it has used, and of what is left as much as its demand is."""
        reports = {name: holder.report for name, holder in self._holders.items()}
        left = max(0, self.limit - self._lost - sum(report.used for report in reports.values()))
        # Each counts a little even without demand, so that the first request of a quiet router is served.
        demand = {name: 1.0 + max(report.wanted, report.used) for name, report in reports.items()}
        floor = left / (4.0 * len(reports))
        shared = left - floor * len(reports)
        return int(reports[router].used + floor + shared * demand[router] / sum(demand.values()))


def first_parts(limit: int, routers: Mapping[str, int] | list[str]) -> dict[str, int]:
    """Return equal parts for routers that start together; what does not divide goes to the first."""
    names = sorted(routers)
    whole, rest = divmod(limit, max(1, len(names)))
    return {name: whole + (i < rest) for i, name in enumerate(names)}
