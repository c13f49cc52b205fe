"""`tide chart`: the tide as a picture."""

from __future__ import annotations

from pathlib import Path

import click

from tidecell.cli.show import out
from tidecell.client.client import Client
from tidecell.client.units import parse_duration
from tidecell.structs.errors import TidecellError


@click.command()
@click.option("--since", default="10m", show_default=True, help="How far back.")
@click.option("-o", "--output", "path", default="tide.png", show_default=True, help="Where the picture goes.")
@click.option("--title", default="", help="Title of the picture.")
@click.option(
    "--mark", "marks", multiple=True, metavar="EPOCH=TEXT", help="A line at a moment; may be repeated."
)
def chart(since: str, path: str, title: str, marks: tuple[str, ...]) -> None:
    """Draw capacity by band, requests and training throughput over time."""
    from tidecell.web.chart import draw_tide

    try:
        since_s = parse_duration(since)
    except ValueError as error:
        raise TidecellError(f"--since {since}: {error}") from error
    with Client.from_home() as client:
        samples = client.series(since_s, points=2000)
    if len(samples) < 2:
        raise TidecellError(
            f"there are {len(samples)} samples of the last {since}; a chart needs 2",
            "wait, or give a longer --since",
        )
    draw_tide(samples, Path(path), title or "Tidecell: capacity by band", [_mark(m) for m in marks])
    out.print(f"wrote {path}")


def _mark(text: str) -> tuple[float, str]:
    moment, separator, label = text.partition("=")
    try:
        return float(moment), label if separator else ""
    except ValueError:
        raise TidecellError(
            f"--mark {text}: {moment!r} is no moment",
            "give seconds since the epoch: --mark 1767225600=deploy",
        ) from None
