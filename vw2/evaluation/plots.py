"""The benchmark at a glance: survival curves, block tasks and PSNR with their controls, drawn by matplotlib."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from vw2.evaluation.benchmark import CONTROLS, Figures, survival_rows
from vw2.scratch import atomic_file

# Okabe & Ito's colours, distinct for all kinds of colour vision.
COLOURS = dict(zip(CONTROLS, ("#009E73", "#56B4E9", "#E69F00", "#CC79A7", "#999999"), strict=True))
OWN = "#D55E00"


def _words(name: str) -> str:
    return {"vw2": "VideoWorld 2", "plain_ldm": "plain LDM"}.get(name, name.replace("_", " "))


def _empty(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="#666666")
    axes.set_xticks([])
    axes.set_yticks([])


def _survival(axes: Axes, figures: Figures, own: str) -> None:
    rows = survival_rows(figures, own)
    for who in dict.fromkeys(row["who"] for row in rows):
        line = [row for row in rows if row["who"] == who]
        colour, width = COLOURS.get(who, OWN), 1.5 if who in COLOURS else 3
        steps = [row["step"] for row in line]
        axes.plot(steps, [row["success"] for row in line], "o-", color=colour, lw=width)
        if all(row["low"] is not None for row in line):
            axes.fill_between(
                steps, [r["low"] for r in line], [r["high"] for r in line], color=colour, alpha=0.15, lw=0
            )
    axes.set(title="Paper folding", xlabel="key step, all before it done", ylabel="success", ylim=(-0.03, 1.03))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    if not rows:
        _empty(axes, "no labels: not judged")


def _dots(axes: Axes, figures: Figures, own: str, keys: dict[str, str], nothing: str) -> None:
    """One group of dots with intervals per key (key -> label), one dot per method."""
    methods = [(own, "")] + [(name, f"controls.{name}.") for name in CONTROLS]
    drawn = False
    for number, (who, prefix) in enumerate(methods):
        for place, key in enumerate(keys):
            if figure := figures.get(prefix + key):
                value, low, high = figure["value"], figure["low"], figure["high"]
                reach = [[0], [0]] if low is None else [[value - low], [high - value]]
                shift = place + 0.13 * (number - (len(methods) - 1) / 2)
                axes.errorbar(shift, value, reach, fmt="o", color=COLOURS.get(who, OWN), capsize=2)
                drawn = True
    if drawn:
        axes.set_xticks(range(len(keys)), list(keys.values()))
        axes.set_xlim(-0.6, len(keys) - 0.4)
    else:
        _empty(axes, nothing)


def write_plot(path: Path, figures: Figures, own: str) -> None:
    """Draw the figures of `benchmark_figures` into a PNG; the same bytes for the same figures."""
    figure = Figure(figsize=(14, 4.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(3, 2, 1))
    _survival(left, figures, own)
    blocks = sorted({key.split("blocks.")[1] for key in figures if "blocks." in key})
    _dots(middle, figures, own, {f"blocks.{name}": name for name in blocks}, "no labels: not judged")
    middle.set(title="Block tasks, final state", ylim=(-0.03, 1.03) if blocks else None)
    if blocks:
        middle.yaxis.set_major_formatter(PercentFormatter(1))
    _dots(right, figures, own, {"quality.psnr": "all pixels"}, "no real video to compare with")
    right.set(title="PSNR in dB")
    shown = [own, *(name for name in CONTROLS if any(key.startswith(f"controls.{name}.") for key in figures))]
    keys = [Line2D([], [], marker="o", color=COLOURS.get(who, OWN), lw=1.5, label=_words(who)) for who in shown]
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False)
    with atomic_file(Path(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=90, metadata={"Software": None})
