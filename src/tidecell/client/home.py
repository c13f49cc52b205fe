"""The directory a cell lives in, and the small files there that its processes share.

    config.json     ports, machine name, limits; written by `tide up`
    token           the owner's bearer token, mode 0600
    access.json     further users: roles, teams, hashes of their tokens, mode 0600
    journal.db      the journal
    metrics.db      samples for charts (not precious)
    agent/          the agent's socket, pid and task table
    router/         the router's last table, access log
    control/        pid and port of the control plane
    jobs/UID/       one directory per run: what TIDECELL_RUN_DIR names, and logs/
    runs/NAME/      trainings
    data/NAME/      datasets
    log/            logs of the cell's own processes

Secrets live in files here, never in arguments or the environment of a process.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from pathlib import Path

import msgspec

from tidecell.structs.errors import TidecellError

MAX_SOCKET_PATH = 100  # sun_path holds 108 bytes


class Config(msgspec.Struct, omit_defaults=True):
    """What `tide up` decided for this cell.

    Attributes:
        cpu_millis: Capacity to offer, 0: what the machine has.
        memory_bytes: Likewise.
        attributes: What the machine says of itself besides what its agent finds out, for example its rack.
        holds: Datasets and packages that are on it.
        interruption: File or address where a notice stands when the machine will be taken away.
        keep_events_s: Events are kept for so long, 0: for ever.
        trace_requests: The router records its requests, without what they say.
    """

    host: str = "127.0.0.1"
    control_port: int = 0
    router_port: int = 0
    machine: str = ""
    cpu_millis: int = 0
    memory_bytes: int = 0
    debug: bool = False
    attributes: dict[str, str] = {}
    holds: tuple[str, ...] = ()
    interruption: str = ""
    keep_events_s: float = 90 * 86_400.0
    trace_requests: bool = False


class Home:
    """A cell's directory."""

    def __init__(self, path: Path | str | None = None) -> None:
        chosen = path or os.environ.get("TIDECELL_HOME") or "~/.tidecell"
        self.path = Path(chosen).expanduser().absolute()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def create(self) -> None:
        """Make the directory tree; private to its owner.

        Raises:
            TidecellError: It cannot be made or written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.path.chmod(0o700)
            for name in ("agent", "router", "control", "jobs", "runs", "data", "log"):
                (self.path / name).mkdir(exist_ok=True)
            if not self.token_path.exists():
                self.write_private(self.token_path, secrets.token_urlsafe(32))
        except OSError as error:
            raise TidecellError(
                f"the cell's directory {self.path} cannot be used: {error.strerror or error}",
                "choose another with --home DIR or TIDECELL_HOME, or free some space",
            ) from error

    @property
    def token_path(self) -> Path:
        """Where the cell's bearer token is kept."""
        return self.path / "token"

    def token(self) -> str:
        """Return the cell's bearer token; empty before the cell's first start."""
        try:
            return self.token_path.read_text().strip()
        except FileNotFoundError:
            return ""

    def config(self) -> Config:
        """Return what `tide up` decided, or defaults."""
        try:
            return msgspec.json.decode((self.path / "config.json").read_bytes(), type=Config)
        except FileNotFoundError:
            return Config()
        except msgspec.DecodeError as error:
            raise TidecellError(
                f"{self.path / 'config.json'} is damaged: {error}", "delete it; tide up writes it anew"
            ) from error

    def write_config(self, config: Config) -> None:
        """Store what `tide up` decided."""
        self.write_private(self.path / "config.json", msgspec.json.encode(config).decode())

    @staticmethod
    def write_private(path: Path, text: str) -> None:
        """Replace a file atomically, mode 0600."""
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(text)
        draft.replace(path)

    def socket_path(self, name: str) -> Path:
        """Return where a unix socket goes; a long home gets a short directory elsewhere."""
        path = self.path / name / f"{name}.sock"
        if len(str(path).encode()) <= MAX_SOCKET_PATH:
            return path
        digest = hashlib.sha256(str(self.path).encode()).hexdigest()[:12]
        short = Path(tempfile.gettempdir()) / f"tidecell-{os.getuid()}-{digest}"
        short.mkdir(mode=0o700, exist_ok=True)
        if short.stat().st_uid != os.getuid():
            raise TidecellError(f"{short} belongs to another user", "choose a shorter --home")
        return short / f"{name}.sock"

    def session_path(self, uid: str) -> Path:
        """Return where the terminal of a dev session is attached to."""
        return self.socket_path("agent").with_name(f"{hashlib.sha256(uid.encode()).hexdigest()[:12]}.sock")

    def run_dir(self, uid: str) -> Path:
        """Return the directory of one run."""
        return self.path / "jobs" / uid

    def log_path(self, uid: str, index: int, attempt: int, stream: str) -> Path:
        """Return a log file; ``stream`` is ``out`` or ``err``."""
        return self.run_dir(uid) / "logs" / f"{index}.{attempt}.{stream}"

    def read_int(self, name: str) -> int | None:
        """Return the number in a small file (a pid, a port), or None."""
        try:
            return int((self.path / name).read_text().strip())
        except (FileNotFoundError, ValueError):
            return None
