"""One list of jobs shared between machines, as `torchrun` or `accelerate launch` starts them: RANK of WORLD_SIZE.

Files are all they exchange: the machines share a file system, on which the project and the scratch directory have the
same path. Rank r does every WORLD_SIZE-th job from r on; rank 0 hands out the results of all, as if it were alone, and
writes the outputs. Each rank writes a note that changes as long as it lives, so that a rank that died is told from one
that is slow; clocks are not compared. What was done is kept: run the same command again and it goes on.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from vw2.console import UserError
from vw2.data.pool import Failure, run_resumable

BEAT = 1.0  # seconds between two notes
PATIENCE = 30.0  # seconds from its start that a rank which fails waits for rank 0, so that it is heard
LOST = 600.0  # seconds of silence after which a rank counts as dead; VW2_RANK_TIMEOUT sets another limit
WORKING, DONE, FAILED = "working", "done", "failed"
TOKEN = secrets.token_hex(8)  # tells this process from those of earlier runs
_leader: list[str] = []  # token of the rank 0 that this process has seen alive: it may be behind by a list of jobs


def place() -> tuple[int, int]:
    """(rank, number of ranks) from the environment; (0, 1) if there is one process only.

    Raises: UserError if the environment makes no sense.
    """
    told = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not all(each.isdecimal() for each in told) or not int(told[0]) < int(told[1]):
        raise UserError(f"expected RANK below WORLD_SIZE, got RANK={told[0]} and WORLD_SIZE={told[1]}; set both")
    return int(told[0]), int(told[1])


def helps() -> bool:
    """Does this process only help rank 0, which writes the outputs?"""
    return place()[0] > 0


def share(jobs: int) -> int:
    """How many of `jobs` results `run_shared` gives to this rank: all to rank 0, its own part to another one."""
    rank, ranks = place()
    return len(range(rank, jobs, ranks)) if rank else jobs


def _limit() -> float:
    """Seconds of silence after which a rank counts as dead."""
    text = os.environ.get("VW2_RANK_TIMEOUT", str(LOST))
    try:
        return float(text)
    except ValueError:
        raise UserError(f"VW2_RANK_TIMEOUT: expected seconds, got {text!r}") from None


class _Notes:
    """The notes <folder>/<rank>.json of one list of jobs: this rank's, written again and again, and the others'.

    A note of an earlier run may still lie there: it answers to a rank 0 that is no more.
    """

    def __init__(self, folder: Path, rank: int, ranks: int) -> None:
        self.folder, self.rank, self.ranks = folder, rank, ranks
        self.limit = _limit()
        self.beats = 0
        self.seen: dict[int, tuple[Any, float]] = {each: (self.read(each), time.monotonic()) for each in range(ranks)}
        self.alive: set[int] = set()

    def read(self, rank: int) -> dict[str, Any]:
        """The note of a rank, {} if there is none."""
        try:
            return json.loads((self.folder / f"{rank}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):  # ValueError: a file system that shows half of a file
            return {}

    def write(self, state: str, **more: Any) -> None:
        """Replace this rank's note, which answers to the rank 0 that was seen alive."""
        self.beats += 1
        if self.rank:
            self.look(0)
        leader = TOKEN if self.rank == 0 else next(iter(_leader), None)
        note = {"state": state, "token": TOKEN, "beats": self.beats, "leader": leader, **more}
        temporary = self.folder / f".{self.rank}.partial"
        temporary.write_text(json.dumps(note), encoding="utf-8")
        os.replace(temporary, self.folder / f"{self.rank}.json")

    def look(self, rank: int) -> dict[str, Any]:
        """The note of another rank; takes down whether it has changed, that is, whether the rank lives."""
        note = self.read(rank)
        if note and note != self.seen[rank][0]:
            self.seen[rank] = note, time.monotonic()
            self.alive.add(rank)
            if rank == 0:
                _leader[:] = [note["token"]]
        return note

    def check(self, rank: int) -> None:
        """Raise UserError if a rank has been silent for too long."""
        silent = time.monotonic() - self.seen[rank][1]
        if silent > self.limit:
            last = f"for {silent:.0f} s" if rank in self.alive else f"at all in {silent:.0f} s"
            raise UserError(
                f"rank {rank} of {self.ranks} was not heard of {last}; see what became of it and run the same command "
                "again on all machines, it goes on where it stopped"
            )

    def await_leader(self) -> None:
        """Wait for rank 0 if this rank has not seen it yet, for a while: a note that answers to nobody is not read."""
        while self.rank and not _leader and time.monotonic() - self.seen[0][1] < min(self.limit, PATIENCE):
            time.sleep(BEAT / 4)
            self.look(0)

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Write notes from a thread until the block ends; if it ends badly, say so in the last one."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(BEAT):
                with suppress(OSError):  # a hiccup of the file system is no death
                    self.write(WORKING)

        def give_up() -> None:
            stop.set()
            thread.join()
            self.await_leader()
            with suppress(OSError):
                self.write(FAILED)

        thread = threading.Thread(target=beat, daemon=True)
        self.write(WORKING)
        thread.start()
        atexit.register(give_up)  # an error where the results are used leaves the block open
        try:
            yield
        except BaseException:
            give_up()
            raise
        finally:
            stop.set()
            thread.join()
            atexit.unregister(give_up)


def run_shared(
    function: Callable[[Any], dict[str, Any]], jobs: Mapping[str, Any], memory: Path, **limits: Any
) -> Iterator[tuple[str, dict[str, Any] | Failure]]:
    """`vw2.data.pool.run_resumable`, shared between the ranks; without ranks it is that function.

    Args:    as `run_resumable`; the names of the jobs and `memory` must be the same on all ranks.
    Yields:  (name, result): of all jobs on rank 0, of its own part on another rank.
    Raises:  UserError if another rank fails or is not heard of any more; else as `run_resumable`.
    """
    rank, ranks = place()
    if ranks == 1:
        yield from run_resumable(function, jobs, memory, **limits)
        return
    names = sorted(jobs)
    part = set(names[rank::ranks])
    folder = memory / f"ranks-{sha256(json.dumps([ranks, *names]).encode()).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    notes = _Notes(folder, rank, ranks)
    failures = {}
    with notes.beating():
        mine = {name: job for name, job in jobs.items() if name in part}
        for name, result in run_resumable(function, mine, memory, **limits):
            if isinstance(result, Failure):
                failures[name] = result.reason
            yield name, result
        if rank == 0:
            yield from _others(notes, names, memory)
        else:
            while not _leader:  # it is the rank 0 of this run that is answered
                time.sleep(BEAT / 4)
                notes.look(0)
                notes.check(0)
    notes.write(DONE, failures=failures)


def _others(notes: _Notes, names: list[str], memory: Path) -> Iterator[tuple[str, dict[str, Any] | Failure]]:
    """On rank 0: the results of the other ranks as they come, until all have said that they are done."""
    waiting = {rank: dict.fromkeys(names[rank :: notes.ranks]) for rank in range(1, notes.ranks)}
    while waiting:
        there = {entry.name for entry in os.scandir(memory)}
        for rank, left in list(waiting.items()):
            note = notes.look(rank)
            answers = note.get("leader") == TOKEN
            for name in [name for name in left if f"{name}.json" in there]:
                del left[name]
                yield name, json.loads((memory / f"{name}.json").read_text(encoding="utf-8"))
            if answers and note["state"] == DONE:
                for name in [name for name in left if name in note["failures"]]:
                    del left[name]
                    yield name, Failure(note["failures"][name])
                if not left:
                    del waiting[rank]
                    continue
            if answers and note["state"] == FAILED:
                raise UserError(
                    f"rank {rank} of {notes.ranks} failed; put right what it says and run the same command again on "
                    "all machines, it goes on where it stopped"
                )
            notes.check(rank)  # also a rank that is done, but whose last records the file system does not show
        time.sleep(BEAT)
