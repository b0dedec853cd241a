"""Figures drawn with matplotlib, which the `dev` extra brings."""

import sys


def panels(rows, columns, width=4.0, height=3.0):
    """(figure, its axes in reading order), each panel so many inches; the figure's savefig(path) writes it.

    Lines are told apart by ten colours, then by the same ones dashed.
    """
    try:
        from matplotlib import colormaps, cycler
        from matplotlib.figure import Figure
    except ImportError:
        sys.exit("Charts are drawn with matplotlib: run `python -m pip install matplotlib` once.")
    figure = Figure((columns * width, rows * height), dpi=150, layout="constrained")
    axes = [*figure.subplots(rows, columns, squeeze=False).flat]
    for axis in axes:
        axis.set_prop_cycle(cycler(linestyle=["-", "--"]) * cycler(color=colormaps["tab10"].colors))
    return figure, axes
