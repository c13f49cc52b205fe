"""How many accelerators a worker or a replica gets when nobody said: one, where the cell has any."""

from __future__ import annotations

from tidecell.client.client import Client
from tidecell.client.units import parse_gpu
from tidecell.structs.resources import GPU

AUTO = "auto"
GPUS_HELP = "Accelerators for each: 1, H100:1, H100:0.5; 0: none; auto: one where the cell has any."


def accelerators(asked: str) -> tuple[str, int]:
    """Return the type (empty: any) and the thousandths of accelerators for one worker or replica.

    Args:
        asked: What was typed; ``auto`` asks the cell for its machines.

    Raises:
        UnitError: It is no number of accelerators.
        CellUnreachable: ``auto``, and there is no cell to ask.
    """
    if asked != AUTO:
        return parse_gpu(asked) if asked else ("", 0)
    with Client.from_home() as client:
        some = any(machine.capacity.gpu_millis for machine in client.machines())
    return ("", GPU if some else 0)


__all__ = ["AUTO", "GPUS_HELP", "accelerators"]
