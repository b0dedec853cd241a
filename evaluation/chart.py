"""Figures drawn with matplotlib, which the `dev` extra brings."""

import sys


def panels(rows, columns, width=4.0, height=3.0):
    """(figure, its axes in reading order), each panel so many inches; the figure's savefig(path) writes it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        sys.exit("Charts are drawn with matplotlib: run `python -m pip install matplotlib` once.")
    figure = Figure((columns * width, rows * height), dpi=150, layout="constrained")
    return figure, [*figure.subplots(rows, columns, squeeze=False).flat]
