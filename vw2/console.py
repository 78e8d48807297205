"""What the user sees: error sentences, progress and tables, all on stderr.

Nothing here can change a result, so stages do not list this module among their DVC dependencies.
"""

from __future__ import annotations

import errno
import functools
import inspect
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

Item = TypeVar("Item")

PLAIN_INTERVAL = 20.0  # seconds between progress lines when stderr is a file: enough to follow, too few to flood a log
INTERRUPTED = 130  # the exit code shells give to a process ended by Ctrl-C (128 + SIGINT)

console = Console(stderr=True)


class UserError(Exception):
    """Something the user can put right; the message is one sentence: expected, got, what to change."""


@contextmanager
def refusals() -> Iterator[None]:
    """What a class says of the settings that it is given (ValueError) is for the user to put right."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error


@contextmanager
def unreadable(what: str, advice: str, errors: type[Exception] = Exception) -> Iterator[None]:
    """Around the code that reads files of others: what it stumbles over there is for the user to put right.

    Args:
        what: say "the Dinov2Model in weights"; advice: what to change.
        errors: what counts as their fault; a bug of ours should keep its traceback.
    Raises: UserError.
    """
    try:
        yield
    except (UserError, MemoryError):  # have sentences of their own
        raise
    except errors as error:
        head, *rest = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()] or [""]
        if rest and head.endswith(":"):  # a heading
            said = rest[0]
        elif isinstance(error, ValueError):
            said = head
        else:  # "'x'" alone would not say that a key is missing
            said = f"{type(error).__name__}: {head}"
        raise UserError(f"{what} could not be read ({said}); {advice}") from error


SHORT = re.compile(r"\d+ requested and \d+ written")  # what numpy says of a full disk


def _sentence(error: BaseException) -> str | None:
    """The one sentence for an error the user can put right, None for a bug (which deserves its traceback)."""
    if isinstance(error, UserError):
        return str(error)
    # Rust and C++ writers (safetensors, polars, torch) report a full disk or memory in words only.
    chain, link = [], error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    text = " ".join(str(each) for each in chain)
    codes = {each.errno for each in chain if isinstance(each, OSError)}
    if codes & {errno.ENOSPC, errno.EDQUOT} or "No space left on device" in text or SHORT.search(text):
        name = next((each.filename for each in chain if isinstance(each, OSError) and each.filename), None)
        where = f" while writing {name}" if name else ""
        return f"the disk is full{where}; free some space and run the same command again, it goes on where it stopped"
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return "memory ran out; lower the batch size or the video size in params.yaml and run the same command again"
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"{error.filename} does not exist; check the path or run the stage that makes it"
    if isinstance(error, PermissionError) and error.filename is not None:
        return f"no permission to open {error.filename}; change its permissions or choose another path"
    if isinstance(error, IsADirectoryError | NotADirectoryError) and error.filename is not None:
        return f"{error.filename}: {error.strerror.lower() if error.strerror else 'wrong kind of path'}; check the path"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}; check the path and the disk"
    return None


def say(text: str) -> None:
    """Print a line on stderr as it is (no markup, no wrapping)."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def fail(sentence: str) -> None:
    """Print `error: sentence` on one line of stderr."""
    console.quiet = False  # as it is where others speak for this process
    console.print(f"error: {sentence}", style="bold red", markup=False, highlight=False, soft_wrap=True)


def _guard(main: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a command so that expected failures end in one sentence and an exit code."""

    @functools.wraps(main)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return main(*args, **kwargs)
        except KeyboardInterrupt:
            if os.environ.get("VW2_DEBUG"):
                raise
            fail("interrupted; run the same command again, it goes on where it stopped")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            sentence = _sentence(error)
            if sentence is None or os.environ.get("VW2_DEBUG"):
                raise
            fail(sentence)
            raise typer.Exit(1) from None

    return guarded


def run(main: Callable[..., Any]) -> None:
    """Run `main` as a Typer command and leave the process.

    --help shows the docstring of `main`, the options, and what the module says of itself: inputs, outputs, time and
    memory, what to look at. Exit code 0, or 1 after a UserError, a missing file or a full disk, 130 after Ctrl-C, 2 for
    wrong command-line options. VW2_DEBUG=1 shows the traceback instead of the sentence.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # what nohup and & do
        signal.signal(signal.SIGINT, signal.default_int_handler)  # KeyboardInterrupt; see stages/__init__.py
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    about = inspect.getdoc(sys.modules[main.__module__]) or ""
    app.command(epilog="\n\n".join(f"\b\n{part}" for part in about.split("\n\n")))(_guard(main))  # \b: lines stay
    app()


class Bar:
    """Counts what is done and shows it: a live bar on a terminal, an occasional plain line elsewhere."""

    def __init__(self, total: int | None, description: str, live: Progress | None) -> None:
        self._total, self._description, self._live = total, description, live
        self._task = live.add_task(description, total=total, note="") if live else None
        self._done = self._initial = 0
        self._start = self._last = time.monotonic()
        self._note = ""

    def advance(self, n: int = 1, **fields: Any) -> None:
        """Count `n` more items done; `fields` (loss=0.18, codes="391/1000") are shown as text."""
        self._done += n
        if fields:
            self._note = " | ".join(f"{key} {_short(value)}" for key, value in fields.items())
        if self._live is not None:
            self._live.update(self._task, completed=self._done, note=self._note)
        elif time.monotonic() - self._last >= PLAIN_INTERVAL:
            self._line()

    def resume(self, done: int) -> None:
        """Tell that `done` more items were finished by an earlier run: they count, but not towards rate and ETA."""
        self._done += done
        self._initial += done
        if self._live is not None:
            self._live.reset(self._task, completed=self._done)

    def _line(self) -> None:
        """Print one plain progress line: step 01200/30000 (4.0%) | loss 0.1873 | 812 ms | eta 4h12m."""
        self._last = time.monotonic()
        fresh, seconds = self._done - self._initial, self._last - self._start
        parts = [f"{self._description} {self._done}"]
        if self._total:
            parts[0] = f"{self._description} {self._done:0{len(str(self._total))}d}/{self._total}"
            parts[0] += f" ({100 * self._done / self._total:.1f}%)"
        if self._note:
            parts.append(self._note)
        if fresh > 0:
            parts.append(_pace(seconds / fresh))
            if self._total and self._done < self._total:
                parts.append(f"eta {duration(seconds / fresh * (self._total - self._done))}")
        say(" | ".join(parts))

    def close(self) -> None:
        """Print the last plain line; a terminal already shows it."""
        if self._live is None and self._done > self._initial:
            self._line()


class _Rate(ProgressColumn):
    """Seconds per item when slow, items per second when fast."""

    def render(self, task: Task) -> Text:
        return Text(_pace(1 / task.speed) if task.speed else "")


def _pace(seconds: float) -> str:
    """Time per item as '812 ms' or, above one second, '1.4 s'."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _short(value: Any) -> str:
    """Four significant digits for floats, str for the rest."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Seconds as '42s', '3m05s' or '4h12m'."""
    whole = int(round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


@contextmanager
def progress(total: int | None, description: str) -> Iterator[Bar]:
    """Show progress of `total` items (None if unknown): `with progress(100, "warm-up") as bar: bar.advance(loss=x)`."""
    if not console.is_terminal:
        bar = Bar(total, description, None)
        yield bar
        bar.close()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TextColumn("{task.fields[note]}"), _Rate(), TimeRemainingColumn(), console=console) as live:
        yield Bar(total, description, live)


def track(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items of `iterable` and show how far it is, with rate and ETA."""
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    with progress(total, description) as bar:
        for item in iterable:
            yield item
            bar.advance()


def _flat(rows: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mapping -> (dotted key, leaf) pairs."""
    for key, value in rows.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def table(title: str, rows: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print a table on stderr.

    Args:
        title: heading.
        rows: a (nested) mapping gives dotted key | value; a list of mappings gives one column per key; a list of
            tuples is printed as it is, without column names.
    """
    if isinstance(rows, Mapping):
        names, lines = None, list(_flat(rows))
    elif rows and isinstance(rows[0], Mapping):
        names = list(dict.fromkeys(key for row in rows for key in row))
        lines = [tuple(row.get(name, "") for name in names) for row in rows]
    else:
        names, lines = None, [tuple(row) for row in rows]
    width = max((len(line) for line in lines), default=0)
    grid = Table(title=title, title_justify="left", show_header=names is not None, header_style="bold")
    for column in range(width):
        grid.add_column(names[column] if names else "", overflow="fold")
    for line in lines:
        grid.add_row(*(Text(_short(cell)) for cell in line))
    console.print(grid)
    sys.stderr.flush()
