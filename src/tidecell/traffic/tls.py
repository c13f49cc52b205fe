"""Certificates of the router's port, by the name that a client asks for; read again when their files change.

The listening socket keeps one context for its whole life; at each handshake the context of the moment takes
its place. So a new certificate is used by the next connection, and nobody's connection is cut.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tidecell.structs.errors import RefusedError

CHECK_EVERY_S = 10.0


@dataclass(frozen=True)
class Pair:
    """A certificate (with its chain) and its key, PEM files; ``name`` is the host that it is for."""

    name: str
    cert: Path
    key: Path


class Certificates:
    """See the module.

    Args:
        pairs: The first is used for clients that name no host, or one that is not here.
        now: Clock, seconds.
        say: Told what could not be read again; the old certificate then stays.

    Raises:
        RefusedError: A file cannot be used.
    """

    def __init__(self, pairs: Sequence[Pair], now: Callable[[], float], say: Callable[[str], None]) -> None:
        self._pairs = tuple(pairs)
        self._now = now
        self._say = say
        self._stamps = self._look()
        self._contexts = self._read()
        self._checked_s = now()
        self.context = _context(self._pairs[0])
        self.context.sni_callback = self._choose

    def _choose(self, connection: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        """Put the context for ``name`` in place; called within each handshake."""
        now_s = self._now()
        if now_s - self._checked_s >= CHECK_EVERY_S:
            self._checked_s = now_s
            self.reload()
        first = self._contexts[self._pairs[0].name]
        connection.context = self._contexts.get((name or "").lower(), first)

    def reload(self) -> None:
        """Read the files again if any has changed; a pair that does not fit leaves all as they were."""
        try:
            stamps = self._look()
            if stamps != self._stamps:
                self._contexts = self._read()
                self._stamps = stamps
        except (OSError, RefusedError) as error:
            self._say(f"certificates were not read again: {error}")

    def _look(self) -> list[tuple[int, int]]:
        try:
            stats = [path.stat() for pair in self._pairs for path in (pair.cert, pair.key)]
        except OSError as error:
            raise _refused(error) from error
        return [(stat.st_mtime_ns, stat.st_ino) for stat in stats]

    def _read(self) -> dict[str, ssl.SSLContext]:
        return {pair.name: _context(pair) for pair in self._pairs}


def _context(pair: Pair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(pair.cert, pair.key)
    except (OSError, ssl.SSLError) as error:
        raise _refused(error, pair) from error
    return context


def _refused(error: Exception, pair: Pair | None = None) -> RefusedError:
    what = f"{pair.cert} and {pair.key}" if pair is not None else "a file"
    return RefusedError(
        f"the certificate cannot be used ({what}): {error}",
        hint="give PEM files that belong together: --tls CERT KEY, --tls-name HOST CERT KEY",
    )
