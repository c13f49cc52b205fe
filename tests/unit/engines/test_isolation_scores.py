"""Who dies first when memory runs out."""

from __future__ import annotations

from tidecell.engines.isolation import oom_score
from tidecell.structs.job import Band
from tidecell.structs.resources import Resources


def test_every_lower_band_dies_before_every_higher_one_whatever_it_reserved() -> None:
    some, none = Resources(1000, 1 << 30), Resources(1000)
    for lower, higher in zip(list(Band), list(Band)[1:], strict=False):
        if higher is Band.MONITORING:
            continue  # apart by less than what reserving is worth: both are the cell's most important
        assert min(oom_score(lower, some), oom_score(lower, none)) > max(
            oom_score(higher, some), oom_score(higher, none)
        )


def test_what_reserved_nothing_dies_before_its_like_that_did() -> None:
    for band in Band:
        assert oom_score(band, Resources(1000)) > oom_score(band, Resources(1000, 1))
        assert 0 < oom_score(band, Resources()) <= 1000
