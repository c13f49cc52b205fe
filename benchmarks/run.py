"""Run benchmarks: `make bench` all of them, `make bench NAME=journal` one. Each prints JSON objects.

A benchmark prints one object per result (`name`, `value`, `unit`, `baseline`, `ratio`) on standard
output; this adds nothing but the order, so that the output can be collected as it is.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(names: list[str]) -> int:
    """Run the named benchmarks, or all; return how many failed."""
    known = sorted(p.stem for p in HERE.glob("*.py") if p.stem != "run" and not p.stem.startswith("_"))
    unknown = [n for n in names if n not in known]
    if unknown:
        print(
            f"error: no benchmark named {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr
        )
        return 2
    failed = 0
    for name in names or known:
        print(f"--- {name}", file=sys.stderr, flush=True)
        failed += subprocess.run([sys.executable, str(HERE / f"{name}.py")], check=False).returncode != 0
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
