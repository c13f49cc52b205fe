"""Which code made a model."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

import tidecell


def code_version() -> dict[str, str]:
    """Return versions of Tidecell, of its training code's text, and of torch."""
    root = Path(tidecell.__file__).parent
    text = hashlib.sha256()
    for package in ("models", "train"):
        for path in sorted((root / package).rglob("*.py")):
            text.update(path.relative_to(root).as_posix().encode() + b"\n" + path.read_bytes())
    return {
        "tidecell": tidecell.__version__,
        "training_code_sha256": text.hexdigest()[:16],
        "torch": str(torch.__version__),
    }
