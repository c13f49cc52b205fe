"""Cleaning, and rules that keep a document or drop it with a reason. Pure.

Rules know two kinds of text. Code has short lines and many that recur (``else:``, ``return``); prose has a
line per paragraph. Published constants are kept where the rule is the published one.

Sources: Rae et al., "Scaling language models" (Gopher), 2021, table A1: share of characters in repeated
lines at most 0.20. Chen et al., "Evaluating large language models trained on code" (Codex), 2021, section
3.1: lines of code at most 1000 characters, 100 on average. Kocetkov et al., "The Stack", 2022: letters and
digits at least 0.25 of a file of code.
"""

from __future__ import annotations

import re
import unicodedata

import msgspec
import numpy as np

from tidecell.data.document import Document, DropReason, Rejection

# C0 and C1 controls but for tab and newline, the byte order mark, and halves of surrogate pairs, which JSON
# can spell and UTF-8 cannot.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")
_SURROGATES = re.compile("[\ud800-\udfff]")

# Letters and digits of ASCII; bytes above are parts of other scripts and count as letters.
_IS_ALNUM = np.array([chr(b).isalnum() if b < 128 else True for b in range(256)])


class FilterParams(msgspec.Struct, frozen=True):
    """Bounds of the quality rules.

    Attributes:
        min_chars: Fewest characters of a document.
        code_max_line_chars: Longest line of code (Codex).
        code_mean_line_chars: Longest mean line of code (Codex).
        prose_max_line_chars: Longest line of prose; a whole book in one line is a broken extraction.
        code_min_alnum_share: Least share of letters and digits in code (The Stack).
        prose_min_alnum_share: The same for prose. The least of 171 licences and READMEs that we measured has
            0.67, their median 0.86.
        code_max_repeated_share: Largest share of characters in lines that occurred before, for code. Gopher's
            0.20 is for prose and would drop good files of Python's own library, whose largest is 0.34.
        prose_max_repeated_share: The same for prose (Gopher).
    """

    min_chars: int = 64
    code_max_line_chars: int = 1000
    code_mean_line_chars: int = 100
    prose_max_line_chars: int = 100_000
    code_min_alnum_share: float = 0.25
    prose_min_alnum_share: float = 0.5
    code_max_repeated_share: float = 0.5
    prose_max_repeated_share: float = 0.20


def clean(text: str) -> str:
    """Return text in NFC, with newlines only, no control characters and no spaces at the ends of lines.

    Blank lines at the start and end go; a last newline is kept, as in files. Empty text stays empty.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if _CONTROLS.search(text):
        text = _CONTROLS.sub("", text)
    if not text.isascii():
        text = unicodedata.normalize("NFC", _SURROGATES.sub("\ufffd", text))
    # Line by line, as one pattern over a hostile run of spaces takes quadratic time.
    text = "\n".join([line.rstrip(" \t\xa0") for line in text.split("\n")]).strip("\n")
    return text + "\n" if text else ""


def judge(document: Document, params: FilterParams) -> Rejection | None:
    """Return why a cleaned document is dropped, or None if it is kept. The first rule that fails is named."""
    text, code = document.text, document.metadata.get("kind") == "code"
    if len(text) < params.min_chars:
        return Rejection(DropReason.TOO_SHORT, f"{len(text)} characters, at least {params.min_chars}")
    lines = text.split("\n")
    return (
        _judge_lines(text, lines, code, params)
        or _judge_alnum(text, code, params)
        or _judge_repetition(text, lines, code, params)
    )


def _judge_lines(text: str, lines: list[str], code: bool, params: FilterParams) -> Rejection | None:
    longest = max(map(len, lines))
    allowed = params.code_max_line_chars if code else params.prose_max_line_chars
    if longest > allowed:
        return Rejection(DropReason.LINES_TOO_LONG, f"longest line {longest} characters, at most {allowed}")
    mean = len(text) / len(lines)
    if code and mean > params.code_mean_line_chars:
        return Rejection(
            DropReason.LINES_TOO_LONG,
            f"mean line {mean:.0f} characters, at most {params.code_mean_line_chars}",
        )
    return None


def _judge_alnum(text: str, code: bool, params: FilterParams) -> Rejection | None:
    share = alnum_share(text)
    least = params.code_min_alnum_share if code else params.prose_min_alnum_share
    if share < least:
        return Rejection(DropReason.LOW_ALPHA_RATIO, f"{share:.2f} letters and digits, at least {least}")
    return None


def _judge_repetition(text: str, lines: list[str], code: bool, params: FilterParams) -> Rejection | None:
    share = repeated_share(lines)
    most = params.code_max_repeated_share if code else params.prose_max_repeated_share
    if share > most:
        return Rejection(
            DropReason.REPETITIVE, f"{share:.2f} of characters in repeated lines, at most {most}"
        )
    return None


def alnum_share(text: str) -> float:
    """Return the share of letters and digits among all that is not white space, 0.0 to 1.0."""
    solid = "".join(text.split()).encode("utf-8", "replace")
    if not solid:
        return 0.0
    return float(_IS_ALNUM[np.frombuffer(solid, dtype=np.uint8)].mean())


def repeated_share(lines: list[str]) -> float:
    """Return the share of characters in lines that occurred before, indentation aside, 0.0 to 1.0."""
    stripped = [s for line in lines if (s := line.strip())]
    total = sum(map(len, stripped))
    # Each distinct line once is what is not repeated; a set does in C what a loop would in Python.
    return 1.0 - sum(map(len, set(stripped))) / total if total else 0.0
