"""Charts as SVG text that takes its colours from the page, so that it reads on light, dark and paper.

Matplotlib draws in stand-in colours, which become the page's CSS variables.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from medi3d.errors import ConfigError
from medi3d.report.figures import read_columns
from medi3d.report.scores import Interval, Scores
from medi3d.report.words import describe_metric
from medi3d.types import FloatArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Palette(NamedTuple):
    """Colours of a chart."""

    ink: str
    faint: str
    series: tuple[str, ...]
    ground: str

    def series_of(self, index: int) -> str:
        """Return the colour of a series; after the last one they begin again."""
        return self.series[index % len(self.series)]


PAGE = Palette("#0a0b0c", "#0a0b0d", tuple(f"#0a0b1{index}" for index in range(6)), "none")
"""Stand-ins that :func:`_to_svg` replaces by the page's own colours."""

PAPER = Palette("#1c2430", "#d9dee5", ("#0b6aa8", "#c05a00", "#7b3fa0", "#1b7f4d", "#b3264f", "#5b6675"), "white")
"""Of a picture that stands alone."""

_VARIABLES = {PAGE.ink: "currentColor", PAGE.faint: "var(--rule)"} | {
    colour: f"var(--series-{index})" for index, colour in enumerate(PAGE.series)
}
_MOST_POINTS = 400
_UNUSED_IDS = re.compile(r' id="[\w.]+_\d+"')
"""Names of groups that nothing refers to."""

_NAMES = re.compile(r'(id="|href="#|url\(#)')


def draw_learning_curves(tables: Mapping[str, Path]) -> str:
    """Draw loss and validation score of runs over the steps.

    Args:
        tables: run → its ``metrics.csv``.

    Raises:
        InputError: a table cannot be read.
    """
    with _styled(PAGE):
        figure = _figure(11, 3.0)
        left, right = figure.subplots(1, 2)
        for index, (name, path) in enumerate(tables.items()):
            (_, step), columns = read_columns(path)
            colour, width = PAGE.series_of(index), 1.6
            for axes, column in ((left, "loss"), (right, "score")):
                known = np.isfinite(columns.get(column, np.full(len(step), np.nan)))
                x, y = _thin(step[known], columns[column][known]) if known.any() else (step[:0], step[:0])
                marker = "o" if len(x) <= 30 else None
                axes.plot(x, y, color=colour, linewidth=width, marker=marker, markersize=4, label=name)
        for axes in (left, right):  # no half steps around a single validation
            axes.xaxis.get_major_locator().set_params(integer=True)
        left.set(title="Training loss", xlabel="step")
        right.set(title="Score of the held-out cases", xlabel="step")
        if len(tables) > 1:
            right.legend(fontsize=8.5)
        return _to_svg(figure)


def draw_case_scores(scores: Scores, metric: str) -> str:
    """Draw a point for each case and label, and the mean with its interval beside them."""
    values: dict[str, list[float]] = {}
    for row in scores.rows:
        if isinstance(value := row.get(metric), float):
            values.setdefault(str(row["label"]), []).append(value)
    with _styled(PAGE):
        figure = _figure(11, 0.75 + 0.48 * len(values))
        axes = figure.subplots()
        rng = np.random.default_rng(0)
        for index, (name, points) in enumerate(values.items()):
            spread = rng.uniform(-0.17, 0.17, len(points))
            axes.scatter(points, index + spread, s=17, color=PAGE.series_of(0), alpha=0.55, linewidths=0)
            _draw_interval(axes, scores.scores[name][metric], index, PAGE.series_of(1))
        axes.set_yticks(range(len(values)), list(values))
        axes.set(ylim=(len(values) - 0.5, -0.5), xlabel=describe_metric(metric).title)
        axes.grid(axis="y", visible=False)
        return _to_svg(figure)


def draw_roc(curves: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Draw ROC curves: class → points (false positive rate, true positive rate)."""
    with _styled(PAGE):
        figure, axes = _square_with_diagonal("guessing")
        for index, (name, points) in enumerate(curves.items()):
            array = np.asarray(points, dtype=float)
            axes.plot(array[:, 0], array[:, 1], color=PAGE.series_of(index), linewidth=2, label=name)
        axes.set(xlabel="false alarms (1 − specificity)", ylabel="found (sensitivity)", xlim=(-0.01, 1), ylim=(0, 1.01))
        axes.legend(loc="lower right", fontsize=9)
        return _to_svg(figure)


def draw_calibration(curves: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Draw reliability: class → points (mean probability, observed share, count); a point's area tells its count."""
    with _styled(PAGE):
        figure, axes = _square_with_diagonal("well calibrated")
        for index, (name, points) in enumerate(curves.items()):
            array = np.asarray(points, dtype=float)
            sizes = 14 + 130 * array[:, 2] / array[:, 2].max()
            axes.plot(array[:, 0], array[:, 1], color=PAGE.series_of(index), linewidth=1.2)
            axes.scatter(
                array[:, 0], array[:, 1], s=sizes, color=PAGE.series_of(index), alpha=0.8, linewidths=0, label=name
            )
        axes.set(xlabel="stated probability", ylabel="observed share", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        axes.legend(loc="upper left", fontsize=9)
        return _to_svg(figure)


def draw_decision(curves: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Draw net benefit (Vickers & Elkin 2006): class → points (threshold, net benefit, net benefit of treating all)."""
    with _styled(PAGE):
        figure = _figure(4.2, 3.7)
        axes = figure.subplots()
        highest = 0.05
        for index, (name, points) in enumerate(curves.items()):
            array = np.asarray(points, dtype=float)
            axes.plot(array[:, 0], array[:, 1], color=PAGE.series_of(index), linewidth=2, label=name)
            axes.plot(array[:, 0], array[:, 2], color=PAGE.series_of(index), linewidth=1, linestyle=(0, (2, 2)))
            highest = max(highest, float(array[:, 1:].max()))
        axes.plot([], [], color=PAGE.ink, linewidth=1, linestyle=(0, (2, 2)), label="treat all")
        axes.axhline(0, color=PAGE.ink, linewidth=0.8, label="treat none")
        axes.set(xlabel="probability from which one would act", ylabel="net benefit")
        axes.set(xlim=(0, 1), ylim=(-0.25 * highest, 1.1 * highest))
        axes.legend(loc="upper right", fontsize=9)
        return _to_svg(figure)


def draw_comparison(runs: Sequence[str], panels: Mapping[str, Sequence[Interval | None]]) -> str:
    """Draw a panel for each title, with one interval a run in it, below each other.

    Args:
        runs: names.
        panels: title → an interval for each run, ``None`` where the run has none.
    """
    with _styled(PAGE):
        return _to_svg(_compare(runs, panels, PAGE))


def write_comparison(runs: Sequence[str], panels: Mapping[str, Sequence[Interval | None]], path: Path) -> Path:
    """Write what :func:`draw_comparison` draws as a picture on white, PNG or SVG by the name's ending.

    Raises:
        ConfigError: another ending.
    """
    if path.suffix.lower() not in (".png", ".svg"):
        raise ConfigError(f"{path}: a figure is a .png or an .svg; give a name that ends so")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with _styled(PAPER):
        figure = _compare(runs, panels, PAPER)
        FigureCanvasAgg(figure)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    return path


def _compare(runs: Sequence[str], panels: Mapping[str, Sequence[Interval | None]], palette: Palette) -> Figure:
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure(1.6 + 2.6 * columns, rows * (0.95 + 0.34 * len(runs)))
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in grid.ravel()[len(panels) :]:
        axes.set_visible(False)
    for axes, (title, intervals) in zip(grid.ravel(), panels.items(), strict=False):
        for index, interval in enumerate(intervals):
            if interval is not None:
                _draw_interval(axes, interval, index, palette.series_of(index))
        axes.set_title(title)
        axes.set_yticks(range(len(runs)), list(runs))
        axes.set_ylim(len(runs) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.12)
        axes.locator_params(axis="x", nbins=4)
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _square_with_diagonal(meaning: str) -> tuple[Figure, Any]:
    """Return a figure whose axes hold two shares, and its axes; ``meaning`` is what the diagonal stands for."""
    figure = _figure(4.2, 3.7)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=PAGE.ink, linewidth=0.8, linestyle=(0, (4, 4)), label=meaning)
    return figure, axes


def _styled(palette: Palette) -> AbstractContextManager[None]:
    """Return a context in which Matplotlib draws as the pages look; outside of it nothing is changed."""
    import matplotlib

    colours = {
        name: palette.ink
        for name in ("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "text.color", "xtick.color", "ytick.color")
    }
    grounds = {name: palette.ground for name in ("axes.facecolor", "figure.facecolor", "savefig.facecolor")}
    style: dict[str, Any] = colours | grounds | {
        "svg.fonttype": "none", "svg.hashsalt": "medi3d", "font.size": 10, "font.family": "sans-serif",
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
        "axes.titlesize": 11, "axes.titlelocation": "left", "grid.color": palette.faint, "legend.frameon": False,
    }  # fmt: skip
    return cast(AbstractContextManager[None], matplotlib.rc_context(style))


def _draw_interval(axes: Any, interval: Interval, at: float, colour: str) -> None:
    if interval.value is None:
        return
    if interval.low is not None and interval.high is not None:
        axes.plot([interval.low, interval.high], [at, at], color=colour, linewidth=2.2, solid_capstyle="round")
    axes.plot([interval.value], [at], marker="o", color=colour, markersize=6.5)


def _thin(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Average neighbours until no more than :data:`_MOST_POINTS` are left; ``(N,)`` and ``(N,)``."""
    size = -(-len(x) // _MOST_POINTS)
    starts = np.arange(0, len(x), size)
    counts = np.diff([*starts, len(x)])
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts


def _to_svg(figure: Figure) -> str:
    """Return a figure as an ``<svg>`` element in the page's colours."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(figure)
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = _UNUSED_IDS.sub("", stream.getvalue())
    # markers of the same shape have the same name in every chart; on a page a name stands once
    text = _NAMES.sub(rf"\1c{zlib.crc32(text.encode()):08x}-", text)
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, variable)
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
