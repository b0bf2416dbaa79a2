"""Figures as plain data, and Matplotlib's drawing of them as SVG for a page that may be light or dark, wide or narrow.

A `Panel` holds every number that it shows, so that whoever reads the page can have them (report.py puts them in as JSON) and a
test can compute them again. Colours are names of CSS variables of the page; text stays text.
"""

from __future__ import annotations

import io
import re
import textwrap
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import LogFormatter

from mlip_pace.arrays import Array

WIDTH, HEIGHT = 4.4, 3.2  # inches; 72 units of the SVG each
# Colours that stand for CSS variables until the SVG is written.
_COLOURS = {"ink": "#010203", "faint": "#010204", "train": "#010205", "test": "#010206", "left_out": "#010207",
            "ace": "#010208", "reference": "#010209", "warn": "#01020a"}  # fmt: skip
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "mlip-pace", "font.size": 10, "text.parse_math": False,
    "text.color": _COLOURS["ink"], "axes.labelcolor": _COLOURS["ink"], "axes.edgecolor": _COLOURS["faint"],
    "xtick.color": _COLOURS["faint"], "ytick.color": _COLOURS["faint"], "xtick.labelcolor": _COLOURS["ink"],
    "ytick.labelcolor": _COLOURS["ink"], "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False, "legend.fontsize": 9, "legend.labelcolor": _COLOURS["ink"], "axes.titlesize": 10,
}  # fmt: skip
LEVELS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096, 16384)  # of a density: the more, the darker


@dataclass(frozen=True)
class Layer:
    """One thing in a panel: a `line`, `dashed` line, `points`, `bars`, a vertical `mark`, or `cells` of a density.

    `x` and `y` are what is drawn (for bars `x` are the lengths). `names` say what a point is, when the pointer is on it. For
    cells `x` and `y` are the edges and `counts` the occupied ones as (column, row, count).
    """

    kind: Literal["line", "dashed", "points", "bars", "mark", "cells"]
    label: str
    colour: str
    x: list[float | None]  # None: no such bar
    y: list[float] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    counts: list[tuple[int, int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Panel:
    """A figure: its axes, its layers, and a sentence about it. `categories` name the bars from top to bottom."""

    name: str
    title: str
    xlabel: str
    ylabel: str
    layers: list[Layer]
    note: str = ""
    xscale: Literal["linear", "log"] = "linear"
    yscale: Literal["linear", "log"] = "linear"
    xlim: tuple[float, float] | None = None
    ylim: tuple[float, float] | None = None
    diagonal: bool = False
    categories: list[str] = field(default_factory=list)


def cells(label: str, colour: str, x: Array, y: Array, xedges: Array, yedges: Array) -> Layer:
    """The density of points; those beyond the edges are counted in the outermost cells, so that none is lost."""
    columns = np.clip(np.searchsorted(xedges, x, side="right") - 1, 0, len(xedges) - 2)
    rows = np.clip(np.searchsorted(yedges, y, side="right") - 1, 0, len(yedges) - 2)
    places, counts = np.unique(np.stack([columns, rows], axis=1), axis=0, return_counts=True)
    occupied = [(int(c), int(r), int(n)) for (c, r), n in zip(places, counts, strict=True)]
    return Layer("cells", label, colour, rounded(xedges), rounded(yedges), counts=occupied)


def rounded(values: Any) -> list[Any]:
    """To six digits: enough to draw and to compare, light in the page. None stays None."""
    return [None if value is None else float(f"{value:.6g}") for value in values]


def svg(panel: Panel) -> str:
    """The panel as an `<svg>` element."""
    height = HEIGHT if not panel.categories else 0.9 + 0.36 * len(panel.categories)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height))
        # The same margins in all, so that they line up in the page; bars have words on the left. Inches.
        left, right, bottom, top = (1.35 if panel.categories else 0.86), 0.25, 0.5, 0.28
        axes = figure.add_axes(
            (left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, (height - bottom - top) / height)
        )
        axes.set_xscale(panel.xscale)
        axes.set_yscale(panel.yscale)
        for axis, scale in ((axes.xaxis, panel.xscale), (axes.yaxis, panel.yscale)):
            if scale == "log":  # Matplotlib's own labels of these are formulas
                axis.set_major_formatter(LogFormatter())
                axis.set_minor_formatter(LogFormatter(minor_thresholds=(0.8, 0.2)))
        axes.grid(True, color=_COLOURS["faint"], alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        names: dict[str, str] = {}
        for number, layer in enumerate(panel.layers):
            _draw(axes, panel, number, layer, names)
        if panel.diagonal:
            axes.axline((0, 0), slope=1, color=_COLOURS["faint"], linewidth=0.8)
        if panel.categories:
            axes.set_yticks(range(len(panel.categories)), [textwrap.fill(c, 17) for c in panel.categories])
            axes.invert_yaxis()
            axes.grid(False, axis="y")
        axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
        if panel.xlim:
            axes.set_xlim(panel.xlim)
        if panel.ylim:
            axes.set_ylim(panel.ylim)
        if any(layer.label for layer in panel.layers):
            # Above the axes, where it covers nothing.
            handles, labels = axes.get_legend_handles_labels()
            figure.legend(handles, labels, loc="upper right", ncols=4, handlelength=1.2, columnspacing=1.0, borderpad=0)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return _for_the_page(text.getvalue(), panel, names)


def _draw(axes: Any, panel: Panel, number: int, layer: Layer, names: dict[str, str]) -> None:
    colour = _COLOURS[layer.colour]
    label = layer.label or None
    if layer.kind in ("line", "dashed"):
        style = "-" if layer.kind == "line" else "--"
        axes.plot(layer.x, layer.y, style, color=colour, label=label, linewidth=1.6, gid=f"layer{number}")
    elif layer.kind == "points":
        # Those with a name are drawn one by one, so that each can say it.
        for place, (x, y) in enumerate(zip(layer.x, layer.y, strict=True)):
            gid = f"layer{number}point{place}"
            axes.plot([x], [y], "o", color=colour, markersize=4.5, fillstyle="none", label=None if place else label, gid=gid)
            if layer.names:
                names[gid] = layer.names[place]
    elif layer.kind == "bars":
        bars = [other for other in panel.layers if other.kind == "bars"]
        thickness = 0.8 / len(bars)
        places = np.arange(len(layer.x)) + (bars.index(layer) - (len(bars) - 1) / 2) * thickness
        drawn = axes.barh(places, np.array(layer.x, dtype=float), 0.92 * thickness, color=colour, label=label)
        for place, (bar, value) in enumerate(zip(drawn, layer.x, strict=True)):
            bar.set_gid(f"layer{number}bar{place}")
            if value is not None:
                names[f"layer{number}bar{place}"] = f"{panel.categories[place]}, {layer.label}: {value:.4g}"
    elif layer.kind == "mark":
        axes.axvline(layer.x[0], color=colour, linestyle=":", linewidth=1.4, label=label, gid=f"layer{number}")
    else:
        xedges, yedges = np.array(layer.x), np.array(layer.y)
        counts = np.array(layer.counts)
        for level, least in enumerate(LEVELS):
            most = LEVELS[level + 1] if level + 1 < len(LEVELS) else np.inf
            boxes = [
                Outline([(xedges[c], yedges[r]), (xedges[c + 1], yedges[r]), (xedges[c + 1], yedges[r + 1]),
                         (xedges[c], yedges[r + 1]), (xedges[c], yedges[r])], closed=True)
                for c, r, _ in counts[(counts[:, 2] >= least) & (counts[:, 2] < most)]
            ]  # fmt: skip
            if boxes:
                opacity = 0.25 + 0.75 * level / (len(LEVELS) - 1)
                patch = PathPatch(Outline.make_compound_path(*boxes), facecolor=colour, alpha=opacity, linewidth=0)
                axes.add_patch(patch)
        axes.set_xlim(xedges[0], xedges[-1])
        axes.set_ylim(yedges[0], yedges[-1])


def _for_the_page(text: str, panel: Panel, names: dict[str, str]) -> str:
    """Only the `<svg>` element: ids of its own, CSS variables for colours, names as tooltips, a title for those who listen."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for name, colour in _COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    text = re.sub(r'\b(id="|xlink:href="#)', rf"\g<1>{panel.name}-", text)
    text = text.replace("url(#", f"url(#{panel.name}-")
    for gid, name in names.items():
        text = text.replace(f'<g id="{panel.name}-{gid}">', f'<g id="{panel.name}-{gid}"><title>{escape(name)}</title>')
    return re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{escape(panel.title)}">',
                  text, count=1)  # fmt: skip
