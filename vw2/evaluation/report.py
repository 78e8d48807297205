"""One self-contained HTML page from metrics and pictures: each claim with its interval and its controls beside it.

What is not there (no labels, a stage that was not run) is left out. Nothing that differs from run to run is shown: no
date, no runtime.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

import polars as pl

from vw2.evaluation.claims import CLAIMS, Claim

UNITS = {
    "share": (100, " %", 1),
    "points": (100, " points", 1),
    "dB": (1, " dB", 2),
    "bits": (1, " bits", 2),
    "px": (1, " px", 1),
    "degrees": (1, "°", 1),
}
FIELDS = {"value", "low", "high", "n"}
Leaf = Mapping[str, float | int | None]
Details = dict[str, Leaf]  # "stage:dotted.key" -> {"value", "low", "high", "n"}

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 } caption { text-align: left; font-weight: 600 }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top }
td.number { white-space: nowrap; font-variant-numeric: tabular-nums } td.main { font-weight: 600 }
img { max-width: 100%; border: 1px solid #ddd } figure { margin: 1.5rem 0 } figcaption, .note { color: #555 }
"""


def _leaves(tree: Mapping, above: str = "") -> Iterator[tuple[str, float | Leaf]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and set(value) != FIELDS:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield above + key, value


def _read(file: Path) -> dict[str, float | Leaf]:
    return dict(_leaves(json.loads(file.read_text(encoding="utf-8")))) if file.is_file() else {}


def read_details(root: Path, stages: Sequence[str], prefix: str = "") -> Details:
    """All figures of some stages: metrics/<stage>.json with the intervals of metrics/detail/<stage>.json.

    A file that is not there gives none. An interval counts only beside the very value it was made with: DVC restores
    metrics from its cache, the detail files come from Git.

    Args: root: the metrics folder; prefix: sub-folder of a variant, "" or "plain_ldm/".
    """
    found = {}
    for stage in stages:
        intervals = _read(Path(root) / "detail" / f"{prefix}{stage}.json")
        for key, value in _read(Path(root) / f"{prefix}{stage}.json").items():
            leaf = intervals.get(key, {})
            bare = {"value": value, "low": None, "high": None, "n": None}
            found[f"{stage}:{key}"] = leaf if leaf.get("value") == value else bare
        found.pop(f"{stage}:seed", None)
    return found


def show(leaf: Leaf, unit: str = "") -> str:
    """A value with its unit and interval: "83.0 % [75.1, 90.2]"."""
    factor, word, digits = UNITS.get(unit, (1, "", None))

    def number(x: float) -> str:
        return f"{x:.6g}" if digits is None and not unit and isinstance(x, int) else f"{x * factor:.{digits or 3}f}"

    text = number(leaf["value"]) + word
    bounds = leaf["low"], leaf["high"]
    return text if None in bounds else f"{text} [{', '.join(map(number, bounds))}]"


def headline(
    details: Details, rival: tuple[str, Details] | None = None, claims: Iterable[Claim] = CLAIMS
) -> list[list]:
    """Rows (claim, figure with interval, n, what stands beside it) of the claims whose figure is there.

    Args: rival: name and figures of another method, which then stands first in the last column.
    """
    rows = []
    for claim in claims:
        if claim.key not in details:
            continue
        beside = [(name, details[key], claim.unit) for name, key in claim.beside if key in details]
        if rival and claim.key in rival[1]:
            gap = claim.key.replace("evaluate:", "compare:", 1)
            points = "points" if claim.unit == "share" else claim.unit  # of percent: a share less another one
            differs = [("difference by test case", details[gap], points)] if gap != claim.key and gap in details else []
            beside = [(rival[0], rival[1][claim.key], claim.unit), *differs, *beside]
        words = "; ".join(f"{name} {show(leaf, unit)}" for name, leaf, unit in beside)
        leaf = details[claim.key]
        rows.append([claim.text, show(leaf, claim.unit), "" if leaf["n"] is None else str(leaf["n"]), words])
    return rows


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    kinds = ["", ' class="number main"', ' class="number"', ""]
    lines = ["<tr>" + "".join(f"<th>{escape(name)}</th>" for name in head) + "</tr>"]
    for row in rows:
        cells = (f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=False))
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _picture(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    words = escape(caption)
    return f'<figure><img alt="{words}" src="data:image/png;base64,{data}"><figcaption>{words}</figcaption></figure>'


def page(title: str, details: Details, pictures: Mapping[Path, str], rival: tuple[str, Details] | None = None) -> str:
    """The report as HTML.

    Args:
        details: from `read_details`.
        pictures: PNG file -> caption; those that do not exist are left out.
        rival: see `headline`.
    """
    rows = headline(details, rival)
    parts = [f"<h1>{escape(title)}</h1>"]
    if "evaluate:skipped" in details:
        parts.append(
            "<p>These videos have no labels: nothing here says whether a task was done, only how the pixels "
            "compare with the real videos.</p>"
        )
    parts.append(
        "<p class=note>Intervals are 95 % by video, as rollouts and frames of one video are not independent. "
        "n counts videos where a figure is a mean over videos.</p>"
    )
    parts.append(_table(("claim", "figure", "n", "beside it"), rows) if rows else "<p>No figure was found.</p>")
    parts += [_picture(path, caption) for path, caption in pictures.items() if Path(path).is_file()]
    parts.append("<h2>All figures</h2>")
    for stage in dict.fromkeys(key.split(":")[0] for key in details):
        lines = [
            (key.split(":", 1)[1], show(leaf), "" if leaf["n"] is None else str(leaf["n"]))
            for key, leaf in details.items()
            if key.startswith(f"{stage}:")
        ]
        parts.append(f"<details><summary>{stage}</summary>{_table(('key', 'figure', 'n'), lines)}</details>")
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    return f"<!doctype html>\n<html lang=en><head>{head}<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"


def worst(results: pl.DataFrame, controls: Sequence[str], per_task: int) -> pl.DataFrame:
    """The rollouts that failed first, per task: not done before done, then few steps, then low PSNR.

    Args:    results: columns of vw2.evaluation.benchmark.RESULTS; controls: names that are no rollouts of the method.
    Returns: at most `per_task` rows per task, one per video, tasks in alphabetical order.
    """
    keys = ["task", "done", "steps", "psnr", "video", "sample"]
    order = results.filter(~pl.col("name").is_in(controls)).sort(keys, nulls_last=True)
    return order.unique("video", keep="first", maintain_order=True).group_by("task", maintain_order=True).head(per_task)


def verdict(row: Mapping) -> str:
    """One line on a rollout: its task, video and what became of it."""
    words = [f"{row['task']}: {row['video']}, rollout {row['sample'] + 1}"]
    if row["refused"]:
        words.append("refused by the guardrail")
    if row["steps"] is not None:
        words.append(f"{row['steps']} of 7 steps")
    if row["done"] is not None:
        words.append("done" if row["done"] else "not done")
    if row["final"] is not None:
        words.append(f"ends as {row['final']}")
    if row["psnr"] is not None:
        words.append(f"{row['psnr']:.1f} dB")
    return ", ".join(words)
