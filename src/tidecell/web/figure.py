"""matplotlib, imported late: only who asks for a picture needs it."""

from __future__ import annotations

from typing import Any

from tidecell.structs.errors import TidecellError


def load_matplotlib(what: str, hint: str) -> tuple[Any, Any]:
    """Return matplotlib, and a maker of figures without a display or any global state.

    Args:
        what: What needs it, for the message: ``charts need matplotlib``.
        hint: How to get it.

    Raises:
        TidecellError: It is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise TidecellError(f"{what}, which is not installed", hint) from error

    def agg_figure(**options: Any) -> Any:
        figure = Figure(**options)
        FigureCanvasAgg(figure)
        return figure

    return matplotlib, agg_figure


__all__ = ["load_matplotlib"]
