"""Many independent jobs in worker processes that can be killed: a file that hangs or crashes a decoder costs one job.
A worker that the system kills costs none, at first: its job is done again.

Workers are spawned, so a result depends on its job alone and never on the number of workers. Results that are JSON can
be remembered in a scratch directory: an interrupted run continues job by job.
"""

from __future__ import annotations

import json
import multiprocessing
import pickle
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from vw2 import params as parameters
from vw2.console import UserError
from vw2.scratch import atomic_file

READY, DONE, RAISED = "ready", "done", "raised"


@dataclass(frozen=True)
class RuntimeConfig:
    """Group `runtime` of params.yaml."""

    workers: int

    def __post_init__(self):
        if self.workers < 1:
            raise ValueError(f"runtime.workers must be at least 1, got {self.workers}; use the number of cores")


@dataclass(frozen=True)
class Failure:
    """A job whose worker had to be killed or died; `reason` completes the sentence "the file ..."."""

    reason: str

    def error(self, doing: str) -> UserError:
        """For whoever cannot do without the job."""
        return UserError(f"{doing} {self.reason}; start again, what is done is kept")


KILLED = Failure("takes more memory than there is, most likely: the system killed its worker twice")


def _limit_memory(gib: float) -> None:
    """Let this process allocate at most `gib` GiB more than it has now (where the system supports it)."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + int(gib * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _serve(pipe: Connection, function: Callable[[Any], Any], memory_gib: float | None) -> None:
    """Life of a worker: take a job, send back its result or exception, until the pipe closes."""
    if memory_gib is not None:
        _limit_memory(memory_gib)
    with suppress(EOFError, ConnectionError):  # nobody is there any more
        pipe.send((READY, None))
        while True:
            job = pipe.recv()
            try:
                answer = (DONE, function(job))
            except BaseException as error:
                answer = (RAISED, _portable(error))
            pipe.send(answer)


def _portable(error: BaseException) -> BaseException:
    """The exception itself if it survives pickling, else one that carries its text."""
    note = f"in a worker process:\n{traceback.format_exc()}"
    with suppress(Exception):
        copy = pickle.loads(pickle.dumps(error))  # our own object: nothing foreign is unpickled
        if str(copy) == str(error):
            error.add_note(note)
            return error
    return RuntimeError(f"{type(error).__name__}: {error}\n{note}")


class _Worker:
    """One worker process and the job it is on."""

    def __init__(self, function: Callable[[Any], Any], memory_gib: float | None) -> None:
        context = multiprocessing.get_context("spawn")  # forking a process that has threads can deadlock
        self.pipe, child = context.Pipe()
        self.process = context.Process(target=_serve, args=(child, function, memory_gib), daemon=True)
        # A child inherits the mask: Ctrl-C, which reaches all, is left to the parent, which ends its workers.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        child.close()
        self.ready = False
        self.job: Any = None  # key of the current job
        self.deadline: float | None = None

    def start(self, key: Any, job: Any, seconds: float | None) -> None:
        self.job, self.ready = key, False
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self.pipe.send(job)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def run_jobs(
    function: Callable[[Any], Any],
    jobs: Mapping[str, Any],
    workers: int = 1,
    seconds: float | None = None,
    memory_gib: float | None = None,
) -> Iterator[tuple[str, Any]]:
    """Apply `function` to every job in worker processes.

    Args:
        function: importable by name (it is sent to spawned processes), as are the jobs and results.
        jobs: name -> job.
        workers: number of processes, >= 1.
        seconds: wall-clock limit of a job; a worker beyond it is killed.
        memory_gib: memory a worker may allocate, GiB.
    Yields: (name, result) in order of completion; the result is a Failure where the worker hung or died, KILLED where
        it was killed from outside twice.
    Raises: what `function` raises; UserError if workers are killed before they begin.
    """
    if workers < 1:
        raise ValueError(f"runtime.workers must be at least 1, got {workers}")
    todo = deque(jobs.items())
    crew: list[_Worker] = []
    again: set[str | None] = set()  # jobs whose worker was killed, which says little of the job
    try:
        while todo or any(worker.job is not None for worker in crew):
            while todo and len(crew) < min(workers, len(jobs)):
                crew.append(_Worker(function, memory_gib))
            for worker in list(crew):
                if worker.ready and todo:
                    worker.start(*todo.popleft(), seconds)
            for worker, result in _next_results(crew):
                name, worker.job = worker.job, None
                if isinstance(result, Failure):
                    crew.remove(worker)
                    worker.stop()
                if result is KILLED and name not in again:
                    again.add(name)
                    todo.extendleft([(name, jobs[name])] if name is not None else [])
                elif name is None:
                    raise UserError(f"a worker process {result.reason} before it began; free some memory")
                else:
                    yield name, result
    finally:
        for worker in crew:
            worker.stop()


def _next_results(crew: list[_Worker]) -> list[tuple[_Worker, Any]]:
    """Wait until something happens; the workers that finished, failed or ran out of time, with their results."""
    soonest = min((worker.deadline for worker in crew if worker.job is not None and worker.deadline), default=None)
    timeout = None if soonest is None else max(0.0, soonest - time.monotonic())
    signalled = wait([worker.pipe for worker in crew], timeout)
    results = []
    for worker in crew:
        if worker.pipe in signalled:
            try:
                kind, value = worker.pipe.recv()
            except (EOFError, ConnectionResetError):
                worker.process.join()
                code = worker.process.exitcode
                killed = code == -signal.SIGKILL
                if worker.job is None and not killed:  # died before its first job: the set-up is broken, not a file
                    raise RuntimeError(f"a worker process ended with code {code} at start") from None
                results.append((worker, KILLED if killed else Failure(f"crashes the decoder (exit code {code})")))
                continue
            if kind == RAISED:
                raise value
            worker.ready = True
            if kind == DONE:
                results.append((worker, value))
        elif worker.job is not None and worker.deadline is not None and time.monotonic() >= worker.deadline:
            results.append((worker, Failure("does not finish within the time limit")))
    return results


def run_resumable(
    function: Callable[[Any], dict[str, Any]], jobs: Mapping[str, Any], memory: Path, **limits: Any
) -> Iterator[tuple[str, dict[str, Any] | Failure]]:
    """`run_jobs` for results that are JSON objects, remembered in the folder `memory` as <name>.json.

    What an earlier run remembered comes first and is not computed again. Failures are not remembered: a worker may
    also die because the machine did.
    """
    memory.mkdir(parents=True, exist_ok=True)
    left = {}
    for name, job in jobs.items():
        file = memory / f"{name}.json"
        if file.is_file():
            yield name, json.loads(file.read_text(encoding="utf-8"))
        else:
            left[name] = job
    for name, result in run_jobs(function, left, **limits):
        if not isinstance(result, Failure):
            with atomic_file(memory / f"{name}.json") as temporary:
                temporary.write_text(json.dumps(result), encoding="utf-8")
        yield name, result


def worker_count(runtime: Any) -> int:
    """The number of worker processes from the group `runtime` of params.yaml. Raises: UserError naming a wrong key."""
    return parameters.build(RuntimeConfig, runtime, "runtime").workers
