"""Write a golden journal with the code at hand: `python tests/golden/make_golden.py 0.2.0`.

A journal that a released version wrote must lead to the same state under every later version. Run this
once for each version that changes what is journaled, and commit both files; never write an old one anew.
`NAME.db` is the journal as that version's control plane left it, `NAME.json` the facts of its last state.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "scenario")]

from golden_facts import facts_of  # noqa: E402
from golden_story import tell_story  # noqa: E402


def main(name: str) -> None:
    """Write the journal and the facts of one version; refuse to touch one that is there."""
    path = HERE / f"{name}.db"
    if path.exists():
        raise SystemExit(f"error: {path.name} exists; a golden journal is never written anew")
    state = tell_story(path)
    path.with_suffix(".json").write_text(json.dumps(facts_of(state), indent=1) + "\n")
    print(f"{path.name}: {state.seq} events, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1])
