"""Notices that this machine will be taken away: a file, or an address that the provider's machines ask.

What is understood: nothing there, HTTP 404 or ``FALSE`` (no notice); JSON with ``time`` (AWS
``spot/instance-action``); a number of seconds that are left; anything else, ``TRUE`` and an empty file among
it, means ``DEFAULT_LEFT_S`` (GCP ``instance/preempted``, Azure: 30 s).
"""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path

import msgspec

DEFAULT_LEFT_S = 30.0
EVERY_S = 2.0
TIMEOUT_S = 1.0
_HEADERS = {"Metadata-Flavor": "Google", "Metadata": "true"}  # else those services do not answer


class InterruptionWatch:
    """Asks for a notice again and again, in a thread of its own.

    Attributes:
        deadline_s: When the machine goes away, seconds since the epoch; None: nobody says so.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._seen = ""
        self.deadline_s: float | None = None
        threading.Thread(target=self._run, name="interruption", daemon=True).start()

    def _run(self) -> None:
        while True:
            self.look(time.time())
            time.sleep(EVERY_S)

    def look(self, now_s: float) -> None:
        """Ask once; the same words again are the same notice."""
        text = read_source(self._source)
        if text is None:
            self._seen, self.deadline_s = "", None
        elif text != self._seen or self.deadline_s is None:
            self._seen, self.deadline_s = text, deadline_of(text, now_s)


def read_source(source: str) -> str | None:
    """Return what stands there; None where there is no notice, or nobody answers."""
    try:
        if source.startswith(("http://", "https://")):
            request = urllib.request.Request(source, headers=_HEADERS)
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                text = answer.read(4096).decode(errors="replace").strip()
        else:
            text = Path(source).expanduser().read_text(errors="replace").strip()
    except (OSError, urllib.error.URLError, ValueError):
        return None
    return None if text.upper() == "FALSE" else text or "TRUE"


def deadline_of(text: str, now_s: float) -> float:
    """Return when the machine goes away."""
    try:
        return now_s + float(text)
    except ValueError:
        pass
    try:
        at = msgspec.json.decode(text, type=dict[str, str])["time"]
        return datetime.fromisoformat(at.replace("Z", "+00:00")).timestamp()
    except (msgspec.MsgspecError, KeyError, ValueError):
        return now_s + DEFAULT_LEFT_S


__all__ = ["InterruptionWatch", "deadline_of", "read_source"]
