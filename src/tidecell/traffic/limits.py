"""What a tenant and each of its keys may use: requests, tokens, requests at once. Pure; counts are whole.

A request reserves at admission what it may cost (its prompt, by size, and the most it asks for) and is
settled when it ends by what it did cost; until then the reservation counts as used. So a limit is never
passed by what was estimated right, and what was not is seen by the next request. A request belongs to the
minute and the day in which it was admitted, also when it ends later.

Minutes are rolling: the last 60 slots of a second. Days end at midnight of a stated time zone. A process may
hold a part of a limit only (``leases``); it counts what it used itself and keeps to its part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from math import ceil
from zoneinfo import ZoneInfo

import msgspec

from tidecell.structs.traffic import Limits, Tenant
from tidecell.traffic.stats import AccountUse

MINUTE_SLOTS = 60
BYTES_PER_TOKEN = 4  # of a prompt, where nothing better is known
DEFAULT_COMPLETION = 256  # reserved for a completion of unstated length


class Rolling:
    """What was used in the last minute.

    Attributes:
        part: What may be used: the limit, or this process's lease of it.
        used: What is used or reserved.
    """

    __slots__ = ("_slots", "part", "used")

    def __init__(self, part: int) -> None:
        self.part = part
        self.used = 0
        self._slots: deque[list[int]] = deque()  # second, amount

    def forget(self, now_s: float) -> None:
        """Let go of what is older than the window."""
        slots, oldest = self._slots, int(now_s) - MINUTE_SLOTS
        while slots and slots[0][0] <= oldest:
            self.used -= slots.popleft()[1]

    def add(self, amount: int, now_s: float) -> list[int]:
        """Use some; return the slot, for ``adjust``."""
        second = int(now_s)
        if not self._slots or self._slots[-1][0] < second:
            self._slots.append([second, 0])
        slot = self._slots[-1]
        slot[1] += amount
        self.used += amount
        return slot

    def adjust(self, slot: list[int], delta: int, now_s: float) -> None:
        """Correct what was added in a slot; of no effect once the slot is out of the window."""
        self.forget(now_s)
        if self._slots and self._slots[0][0] <= slot[0]:
            slot[1] += delta
            self.used += delta

    def wait_s(self, amount: int, now_s: float) -> float:
        """Return after how long so much may be used if nothing else comes."""
        need = self.used + amount - self.part
        for second, used in self._slots:
            if need <= 0:
                break
            need -= used
            if need <= 0:
                return max(0.0, second + MINUTE_SLOTS - now_s)
        return 0.0 if need <= 0 else float(MINUTE_SLOTS)


class Daily:
    """What was used since midnight.

    Attributes:
        part, used: As in ``Rolling``.
        day: Number of the day that is counted.
    """

    __slots__ = ("_calendar", "day", "ends_s", "part", "used")

    def __init__(self, part: int, calendar: Callable[[float], tuple[int, float]]) -> None:
        self.part = part
        self.used = 0
        self.day = 0
        self.ends_s = float("-inf")
        self._calendar = calendar

    def forget(self, now_s: float) -> None:
        """Begin anew if the day is over."""
        if now_s >= self.ends_s:
            day, self.ends_s = self._calendar(now_s)
            if day != self.day:
                self.day, self.used = day, 0

    def add(self, amount: int, now_s: float) -> list[int]:
        """Use some; return the day, for ``adjust``."""
        self.used += amount
        return [self.day]

    def adjust(self, slot: list[int], delta: int, now_s: float) -> None:
        """Correct what was added on a day; of no effect once the day is over."""
        self.forget(now_s)
        if slot[0] == self.day:
            self.used += delta

    def wait_s(self, amount: int, now_s: float) -> float:
        """Return after how long so much may be used."""
        return max(0.0, self.ends_s - now_s)


Window = Rolling | Daily


class Account:
    """One tenant's or one key's counts.

    Attributes:
        in_flight: Requests under way.
        concurrency: How many there may be; 0: no limit.
        windows: By name of the limit: ``requests_per_minute``, ``tokens_per_minute``, ``tokens_per_day``.
    """

    def __init__(self, name: str, limits: Limits, calendar: Callable[[float], tuple[int, float]]) -> None:
        self.name = name
        self.in_flight = 0
        self.concurrency = limits.concurrency
        self.windows: dict[str, Window] = {}
        if limits.requests_per_minute:
            self.windows["requests_per_minute"] = Rolling(limits.requests_per_minute)
        if limits.tokens_per_minute:
            self.windows["tokens_per_minute"] = Rolling(limits.tokens_per_minute)
        if limits.tokens_per_day:
            self.windows["tokens_per_day"] = Daily(limits.tokens_per_day, calendar)


class Refused(msgspec.Struct, frozen=True):
    """Why a request may not pass.

    Attributes:
        reason: ``limit_requests_per_minute``, ``limit_tokens_per_minute``, ``limit_tokens_per_day`` or
            ``limit_concurrency``.
        message: In words.
        retry_after_s: When to try again; 0: it can never pass, being larger than the whole limit.
    """

    reason: str
    message: str
    retry_after_s: int


class Reservation:
    """What one admitted request holds; given back exactly once."""

    __slots__ = ("accounts", "held", "is_open", "tokens")

    def __init__(
        self, accounts: Sequence[Account], tokens: int, held: list[tuple[Window, list[int]]]
    ) -> None:
        self.accounts = accounts
        self.tokens = tokens
        self.held = held
        self.is_open = True


class Ledger:
    """All tenants' counts in one router process.

    Args:
        tenants: Who there is.
        offset_s: Unix time minus the clock that ``now_s`` is read from.
        routers: Processes that share the limits; each has an equal part, rounded down.
    """

    def __init__(self, tenants: Sequence[Tenant], offset_s: float, routers: int = 1) -> None:
        self.accounts: dict[str, Account] = {}
        self._of_key: dict[str, tuple[Account, ...]] = {}
        self.tenant_of: dict[str, Tenant] = {}
        self._offset_s = offset_s
        self._known: dict[str, Limits] = {}
        self.update(tenants, routers)

    def update(self, tenants: Sequence[Tenant], routers: int = 1) -> None:
        """Take over other tenants and limits; what was used stays used."""
        self._routers = routers
        accounts: dict[str, Account] = {}
        self._of_key.clear()
        self.tenant_of.clear()
        known: dict[str, Limits] = {}
        for tenant in tenants:
            calendar = midnights(tenant.limits.time_zone, self._offset_s)
            own = self._account(tenant_account(tenant.name), tenant.limits, calendar, known, accounts)
            for key in tenant.keys:
                name = key_account(tenant.name, key.name)
                of_key = self._account(name, key.limits, calendar, known, accounts)
                self._of_key[key.hash] = (own, of_key)
                self.tenant_of[key.hash] = tenant
        self.accounts, self._known = accounts, known

    def reserve(self, key: str, tokens: int, now_s: float) -> Reservation | Refused:
        """Return what a request of a key holds from now on, or why it may not pass.

        Args:
            key: Hash of its bearer token; one that no tenant has is not limited.
            tokens: What it may cost.
            now_s: Time.
        """
        accounts = self._of_key.get(key, ())
        for account in accounts:
            if account.concurrency and account.in_flight >= account.concurrency:
                message = f"{account.name} has {account.in_flight} requests under way; allowed at once are "
                return Refused("limit_concurrency", f"{message}{account.concurrency}", 1)
            for name, window in account.windows.items():
                amount = 1 if name == "requests_per_minute" else tokens
                window.forget(now_s)
                if window.used + amount > window.part:
                    return _refused(account, name, window, amount, now_s)
        held: list[tuple[Window, list[int]]] = []
        for account in accounts:
            account.in_flight += 1
            for name, window in account.windows.items():
                if name == "requests_per_minute":
                    window.add(1, now_s)
                else:
                    held.append((window, window.add(tokens, now_s)))
        return Reservation(accounts, tokens, held)

    def settle(self, reservation: Reservation, tokens: int, now_s: float) -> None:
        """Give back a reservation: ``tokens`` is what the request did cost."""
        if not reservation.is_open:
            return
        reservation.is_open = False
        for account in reservation.accounts:
            account.in_flight -= 1
        delta = tokens - reservation.tokens
        if delta:
            for window, slot in reservation.held:
                window.adjust(slot, delta, now_s)

    def use(self, now_s: float) -> dict[str, AccountUse]:
        """Return what every tenant and key has used in the windows of now, by the account's name."""
        found = {}
        for name, account in self.accounts.items():
            for window in account.windows.values():
                window.forget(now_s)
            used = {limit: window.used for limit, window in account.windows.items()}
            found[name] = AccountUse(account.in_flight, used)
        return found

    def _account(
        self,
        name: str,
        limits: Limits,
        calendar: Callable[[float], tuple[int, float]],
        known: dict[str, Limits],
        accounts: dict[str, Account],
    ) -> Account:
        limits = _part_of(limits, self._routers)
        known[name] = limits
        account = self.accounts.get(name)
        fresh = Account(name, limits, calendar)
        if account is None:
            account = fresh
        elif self._known.get(name) != limits:
            account.concurrency = limits.concurrency
            for window_name, window in fresh.windows.items():
                old = account.windows.get(window_name)
                if old is not None:
                    old.part = window.part
                    fresh.windows[window_name] = old
            account.windows = fresh.windows
        accounts[name] = account
        return account


def tenant_account(tenant: str) -> str:
    """Return what a tenant's account is called, in messages and statistics."""
    return f"tenant {tenant}"


def key_account(tenant: str, key: str) -> str:
    """Return what a key's account is called."""
    return f"key {key} of {tenant}"


def _part_of(limits: Limits, routers: int) -> Limits:
    """Return one router's equal part of limits; at least 1, since 0 would be no limit."""
    if routers == 1:
        return limits
    names = ("requests_per_minute", "tokens_per_minute", "tokens_per_day", "concurrency")
    parts = {name: max(1, getattr(limits, name) // routers) for name in names if getattr(limits, name)}
    return msgspec.structs.replace(limits, **parts)


def midnights(zone: str, offset_s: float) -> Callable[[float], tuple[int, float]]:
    """Return a function that says which day a time is in, and when that day ends, on the same clock."""
    place = ZoneInfo(zone)

    def calendar(now_s: float) -> tuple[int, float]:
        today = datetime.fromtimestamp(now_s + offset_s, place)
        midnight = datetime(today.year, today.month, today.day, tzinfo=place) + timedelta(days=1)
        return today.toordinal(), midnight.timestamp() - offset_s

    return calendar


def estimate_tokens(body_bytes: int, max_tokens: int) -> int:
    """Return what a request is taken to cost before it has run."""
    return body_bytes // BYTES_PER_TOKEN + (max_tokens or DEFAULT_COMPLETION)


def actual_tokens(
    tokens_in: int | None, tokens_out: int | None, frames: int, body_bytes: int, status: int
) -> int:
    """Return what a request did cost: by ``usage``, or by what is known where none came.

    A stream that broke had its prompt computed and as many tokens made as pieces were passed on; one
    without an answer at all (refused, not reached) cost nothing.
    """
    if tokens_in is not None or tokens_out is not None:
        return (tokens_in or 0) + (tokens_out or 0)
    if frames == 0 and not 200 <= status < 300:
        return 0
    return body_bytes // BYTES_PER_TOKEN + frames


def _refused(account: Account, name: str, window: Window, amount: int, now_s: float) -> Refused:
    what = name.replace("_", " ")
    if amount > window.part:
        message = f"the request may need {amount} tokens; {account.name} has {window.part} {what} in all"
        return Refused(f"limit_{name}", message, 0)
    message = f"{account.name} has used {window.used} of {window.part} {what}, and the request needs {amount}"
    return Refused(f"limit_{name}", message, max(1, ceil(window.wait_s(amount, now_s))))
