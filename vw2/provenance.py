"""Records of a run: metrics that the seed determines, their intervals, and what the run cost.

metrics/<stage>.json          plain numbers, for `dvc metrics`
metrics/detail/<stage>.json   the same keys, each {"value", "low", "high", "n"}
metrics/runtime/<stage>.json  seconds and memory: different in every run, so no DVC output and not in Git
benchmarks/runtime/<stage>.json  the same of a frozen stage, in Git like the weights that it made; not beside them, or
                              the same weights, made again, would be another output
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vw2.console import UserError
from vw2.scratch import atomic_file

DIGITS = 6  # significant digits: below the noise of any metric, above float formatting differences
FIELDS = ("value", "low", "high", "n")
COMMITTED = Path("benchmarks")  # root of the runtimes that are in Git


def _number(value: Any, key: str) -> int | float:
    """A finite plain Python number, floats rounded to 6 significant digits."""
    value = value.item() if hasattr(value, "item") else value  # numpy and torch scalars
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"metric {key}: expected a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"metric {key}: expected a finite number, got {value}; leave the key out if there is no value")
    return value if isinstance(value, int) else float(f"{value:.{DIGITS}g}") + 0.0  # + 0.0 turns -0.0 into 0.0


def _leaf(value: Any, key: str, n: int | None) -> dict[str, int | float | None]:
    """A metric as {"value", "low", "high", "n"}; null where unknown."""
    given = dict(value) if isinstance(value, Mapping) else {"value": value}
    if "value" not in given or set(given) - set(FIELDS):
        raise ValueError(f"metric {key}: expected the keys {', '.join(FIELDS)}, got {', '.join(map(str, given))}")
    given = {"low": None, "high": None, "n": n} | given
    return {field: None if given[field] is None else _number(given[field], f"{key}.{field}") for field in FIELDS}


def _insert(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set the dotted `key` in a nested dict; ValueError if it is both a number and a group."""
    *groups, last = key.split(".")
    for group in groups:
        tree = tree.setdefault(group, {})
        if not isinstance(tree, dict) or set(tree) == set(FIELDS):
            raise ValueError(f"metric {key}: {group} is already a number")
    if last in tree:
        raise ValueError(f"metric {key} is given twice")
    tree[last] = value


def _write(path: Path, tree: dict[str, Any]) -> None:
    """Write sorted, indented JSON atomically; NaN is refused."""
    with atomic_file(path) as temporary:
        text = json.dumps(tree, indent=2, sort_keys=True, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def write_metrics(
    stage: str,
    values: Mapping[str, float | Mapping[str, Any]],
    seed: int,
    n: int | None = None,
    root: Path = Path("metrics"),
) -> None:
    """Write metrics/<stage>.json and metrics/detail/<stage>.json.

    Args:
        stage: name of the stage; "plain_ldm/train_ar" goes to a sub-folder of both.
        values: dotted key -> number, or {"value", "low", "high", "n"} with a 95 % interval and its sample size.
        seed: recorded as "seed".
        n: sample size, recorded as "n"; also the default "n" of every value.
        root: the metrics folder.
    Raises: ValueError if a number is NaN or infinite, a key is given twice or is both number and group.
    """
    leaves = {key: _leaf(value, key, n) for key, value in values.items()}
    for key, value in (("seed", seed), ("n", n)):
        if key in leaves:
            raise ValueError(f"metric {key}: pass it as the argument {key}")
        if value is not None:
            leaves[key] = _leaf(value, key, None)
    plain: dict[str, Any] = {}
    detail: dict[str, Any] = {}
    for key, leaf in leaves.items():
        _insert(plain, key, leaf["value"])
        _insert(detail, key, leaf)
    _write(Path(root) / f"{stage}.json", plain)
    _write(Path(root) / "detail" / f"{stage}.json", detail)


def anew(stage: str) -> str:
    """The commands that make the output of a frozen stage anew: `dvc repro`, with -f too, leaves such a stage alone."""
    return f"python -m stages.{stage} && dvc commit -f {stage}"


def check_record(made: Mapping[str, Any], asked: Mapping[str, Any], group: str, command: str) -> None:
    """Refuse the output of a frozen stage that was made with other parameters than those of params.yaml.

    Args:
        made, asked: nested parameters, as recorded beside the output and as params.yaml has them.
        group: name of both, for the message.
        command: what makes the output anew.
    Raises: UserError naming the first parameter that differs.
    """
    if not isinstance(asked, Mapping):
        raise UserError(f"{group}: expected a group of keys, got {asked!r}; see {group} in the committed params.yaml")
    made, asked = json.loads(json.dumps([made, asked]))  # tuples become lists
    for key in sorted(set(made) | set(asked)):
        one, two = made.get(key), asked.get(key)
        if isinstance(one, Mapping) and isinstance(two, Mapping):
            check_record(one, two, f"{group}.{key}", command)
        elif one != two:
            raise UserError(
                f"the frozen output in use was made with {group}.{key} {one}, params.yaml says {two}; "
                f"set it back, or make the output anew: {command}"
            )


def peak_memory_gib() -> float:
    """Largest resident memory of this process plus that of its largest finished child, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes on macOS, KiB on Linux
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return (own + children) * unit / 2**30


@contextmanager
def runtime(
    stage: str, root: Path = Path("metrics"), spent: Path | None = None, **rates: float
) -> Iterator[dict[str, float]]:
    """Time a block and write <root>/runtime/<stage>.json when it succeeds.

    Args: spent: file in the scratch directory that carries the seconds over an interruption, though not over a kill;
        None: after a resume they are those of the last part alone.
    Yields: a dict; what is put into it (clips_per_second=...) is written too, beside `rates`, "seconds" and
        "peak_memory_gib".
    """
    before = float(spent.read_text()) if spent is not None and spent.exists() else 0.0
    start = time.perf_counter()
    record = dict(rates)
    try:
        yield record
    except BaseException:  # Ctrl-C among them
        if spent is not None:
            with atomic_file(spent) as temporary:
                temporary.write_text(str(before + time.perf_counter() - start))
        raise
    record |= {"seconds": before + time.perf_counter() - start, "peak_memory_gib": peak_memory_gib()}
    _write(Path(root) / "runtime" / f"{stage}.json", {key: _number(value, key) for key, value in record.items()})
