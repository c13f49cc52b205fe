"""The error tree. Everything a user can cause raises from here.

    TidecellError
    ├── SpecError            a spec is wrong; carries every mistake with its line
    ├── RefusedError         the cell understood and said no; carries a reason token
    ├── ForbiddenError       the token is known and may not do this
    ├── NotFoundError        no job, machine or service of that name
    ├── ConflictError        the thing exists, or changed meanwhile
    ├── CellUnreachable      the control plane did not answer
    ├── JournalError         the journal cannot be written or read
    │   └── JournalFull      no space left where the journal lives
    ├── DataError            a dataset, corpus or shard is missing or damaged
    ├── CheckpointError      a checkpoint is missing, damaged or made under another contract
    └── InvariantError       our mistake, never the user's: a truth of every reachable state is broken

An error says what happened with which value and what was allowed; ``hint`` says what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class TidecellError(Exception):
    """Base of all errors shown to a user.

    Attributes:
        hint: What to do about it; empty where nothing sensible can be said.
        exit_code: What the command line exits with.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def render(self) -> str:
        """Return the message as the command line prints it."""
        text = f"error: {self.message}"
        return f"{text}\n\nhint: {self.hint}" if self.hint else text


@dataclass(frozen=True)
class Mistake:
    """One mistake in a spec: where it is, what it is, what to do."""

    where: str
    message: str
    hint: str = ""
    line: int | None = None


class SpecError(TidecellError):
    """A spec has mistakes; all of them are listed.

    Attributes:
        mistakes: Every mistake found, in the order of the file.
    """

    exit_code = 2

    def __init__(self, mistakes: Sequence[Mistake], source: str = "") -> None:
        self.mistakes = tuple(mistakes)
        self.source = source
        count = len(self.mistakes)
        noun = "mistake" if count == 1 else "mistakes"
        super().__init__(f"{source or 'the spec'} has {count} {noun}")

    def render(self) -> str:
        return f"error: {self.message}\n\n{self.describe()}"

    def describe(self) -> str:
        """Return every mistake on a line of its own, each with its hint."""
        lines = []
        for m in self.mistakes:
            place = f"line {m.line}: " if m.line is not None else ""
            lines.append(f"  {place}{m.where}: {m.message}" if m.where else f"  {place}{m.message}")
            if m.hint:
                lines.append(f"    hint: {m.hint}")
        return "\n".join(lines)


class RefusedError(TidecellError):
    """The cell refused an operation.

    Attributes:
        reason: Stable token, see ``tidecell.structs.job.Reason``.
    """

    def __init__(self, message: str, hint: str = "", reason: str = "Misconfigured") -> None:
        super().__init__(message, hint)
        self.reason = reason


class ForbiddenError(TidecellError):
    """The token is known, and its role or team does not allow this."""


class NotFoundError(TidecellError):
    """Nothing of that name exists."""


class ConflictError(TidecellError):
    """The thing exists already, or changed in between."""


class JobFailedError(TidecellError):
    """A run whose result somebody asked for has none."""


class CellUnreachable(TidecellError):
    """The control plane did not answer."""


class JournalError(TidecellError):
    """The journal cannot be written or read."""


class JournalFull(JournalError):
    """No space is left where the journal lives; nothing was accepted."""


class DataError(TidecellError):
    """A dataset, corpus or shard is missing or damaged."""


class CheckpointError(TidecellError):
    """A checkpoint is missing, damaged, or was made under another determinism contract."""


class InvariantError(TidecellError):
    """A truth of every reachable state is broken: a defect in Tidecell.

    Attributes:
        story: The last events that touched the object, oldest first.
    """

    def __init__(self, message: str, story: Sequence[str] = ()) -> None:
        super().__init__(message, "this is a defect in Tidecell; please report it with the events above")
        self.story = tuple(story)
