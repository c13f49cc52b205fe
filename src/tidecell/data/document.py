"""Documents, and what became of those that were left out. Pure.

A document is one text with an id that is unique in its dataset. Whatever leaves the pipeline early is a
``Drop`` with a reason: nothing disappears without one.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping

import msgspec

SAMPLE_CHARS = 200


class DropReason(enum.StrEnum):
    """Why a document was left out. Tokens are stable: they are stored in manifests."""

    UNREADABLE = "Unreadable"
    BROKEN_ARCHIVE = "BrokenArchive"
    NOT_UTF8 = "NotUtf8"
    BINARY = "Binary"
    BAD_RECORD = "BadRecord"
    EMPTY = "Empty"
    TOO_SHORT = "TooShort"
    LINES_TOO_LONG = "LinesTooLong"
    LOW_ALPHA_RATIO = "LowAlphaRatio"
    REPETITIVE = "Repetitive"
    EXACT_DUPLICATE = "ExactDuplicate"
    NEAR_DUPLICATE = "NearDuplicate"


REASON_MEANING = {
    DropReason.UNREADABLE: "the file could not be opened or read",
    DropReason.BROKEN_ARCHIVE: "the compressed file is damaged from here on",
    DropReason.NOT_UTF8: "the bytes are not UTF-8",
    DropReason.BINARY: "the bytes hold NUL: a binary file",
    DropReason.BAD_RECORD: "the line is not a JSON object with a 'text' string",
    DropReason.EMPTY: "nothing is left after cleaning",
    DropReason.TOO_SHORT: "too few characters to learn from",
    DropReason.LINES_TOO_LONG: "lines as long as in minified or generated text",
    DropReason.LOW_ALPHA_RATIO: "too few letters and digits: tables, dumps, noise",
    DropReason.REPETITIVE: "too large a share of the text repeats earlier lines",
    DropReason.EXACT_DUPLICATE: "equal to an earlier document, but for case and spacing",
    DropReason.NEAR_DUPLICATE: "shares most of its word 5-grams with an earlier document",
}


class Document(msgspec.Struct, frozen=True):
    """One text.

    Attributes:
        id: Unique in the dataset, stable over machines: a path relative to its source, or a record's own id.
        text: The text; after cleaning it always encodes as UTF-8.
        source: Name of the source that it came from.
        metadata: Facts about it; ``kind`` is "code" or "prose", ``language`` "python" where known.
    """

    id: str
    text: str
    source: str
    metadata: Mapping[str, str] = {}

    @property
    def is_python(self) -> bool:
        """Whether the text is Python source."""
        return self.metadata.get("language") == "python"


class Rejection(msgspec.Struct, frozen=True):
    """A step's refusal of a document: a stable reason and the number or name behind it."""

    reason: DropReason
    detail: str = ""


class Drop(msgspec.Struct, frozen=True):
    """A document that left the pipeline, as kept in ``dropped.jsonl``.

    Attributes:
        document_id: The document.
        source: Where it came from.
        step: Name of the step that dropped it.
        reason: Stable token.
        detail: The value that decided, against what was allowed.
        sample: The first characters of the text, to judge the rule by.
    """

    document_id: str
    source: str
    step: str
    reason: DropReason
    detail: str = ""
    sample: str = ""


def drop(document: Document, step: str, rejection: Rejection) -> Drop:
    """Return the record of a document that ``step`` rejected."""
    sample = document.text[:SAMPLE_CHARS].encode("utf-8", "replace").decode("utf-8")
    return Drop(document.id, document.source, step, rejection.reason, rejection.detail, sample)


def digest64(*parts: str) -> int:
    """Return a 64-bit hash of strings: the same on every machine and in every run."""
    joined = "\x00".join(parts).encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(joined, digest_size=8).digest(), "little")
