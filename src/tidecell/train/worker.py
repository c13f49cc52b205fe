"""Entry of a training's worker: ``python -m tidecell.train.worker --config FILE.json``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tidecell.structs.errors import TidecellError
from tidecell.train.config import load_config
from tidecell.train.loop import Training


def main() -> int:
    """Run one worker; 0 when the training is complete or this worker was told to leave."""
    parser = argparse.ArgumentParser(prog="python -m tidecell.train.worker", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="a stored TrainConfig (JSON)")
    try:
        Training(load_config(parser.parse_args().config)).run()
    except TidecellError as error:
        print(error.render(), file=sys.stderr, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
