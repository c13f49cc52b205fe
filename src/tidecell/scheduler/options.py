"""How a pass saves time: each means can be switched off, or on, by itself. Pure."""

from __future__ import annotations

import msgspec


class Options(msgspec.Struct, frozen=True, omit_defaults=True):
    """The means by which ``schedule`` saves time. None but ``sample`` changes a plan.

    Attributes:
        cached: Whether scores are kept between units; None: on large cells.
        classes: Whether jobs that ask for the same in the same places share what was worked out for one.
        runs: Whether runs of single tasks are placed by one call; None: where that is compiled.
        by_row: Whether victims are looked for row by row where that gives those of the whole cell.
        sample: How many rows with room suffice, looked at in an order that the seed draws; the best of them
            is taken (Borg's relaxed randomisation, EuroSys 2015, section 3.4). 0: all rows are looked at.
            Scores are then not kept, so ``cached`` and ``runs`` say nothing.
    """

    cached: bool | None = None
    classes: bool = True
    runs: bool | None = None
    by_row: bool = True
    sample: int = 0


USUAL = Options()
