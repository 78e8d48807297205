"""Ranks: jobs shared between processes that have nothing in common but a folder, one of which may die."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from numbered import numbered_frame, write_raw
from test_ingest import digest, parameters

from vw2.console import UserError
from vw2.data import ranks

ROOT = Path(__file__).parents[1]
SETTING = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

SHARED = """
import json, os, sys, time
from pathlib import Path
from vw2.console import UserError
from vw2.data.pool import Failure
from vw2.data.ranks import run_shared

def odd(job):
    if job == "crash":
        os._exit(3)
    if job == "raise":
        raise KeyError("a bug")
    if job == "wait":
        time.sleep(12)
    return job.upper()

if __name__ == "__main__":
    jobs, memory = json.loads(sys.argv[1]), Path("memory")
    try:
        found = run_shared(odd, jobs, memory)
        print(json.dumps({name: r.reason if isinstance(r, Failure) else r for name, r in found}))
    except UserError as error:
        sys.exit(f"error: {error}")
"""


def launch(command, folder, count, timeout=600, late=0, first=0, **environment):
    """Ranks `first` .. `count` that share nothing but the folder; rank 0 starts `late` seconds after the others."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    shared = os.environ | {"PYTHONPATH": paths, "WORLD_SIZE": str(count), "VW2_RANK_TIMEOUT": str(timeout)}
    processes = []
    for rank in reversed(range(first, count)):
        time.sleep(0 if rank else late)
        own = shared | {"RANK": str(rank)} | environment
        processes.append(subprocess.Popen([sys.executable, *command], cwd=folder, env=own, **SETTING))
    return processes[::-1]


def await_file(folder, pattern):
    """Wait until a file is there."""
    deadline = time.monotonic() + 240
    while not list(folder.glob(pattern)) and time.monotonic() < deadline:
        time.sleep(0.01)


def finish(processes):
    """(exit codes, outputs, errors) of the processes."""
    told = [process.communicate(timeout=900) for process in processes]
    return [process.returncode for process in processes], [out for out, _ in told], [error for _, error in told]


@pytest.fixture
def shared(tmp_path):
    """Run `run_shared` with odd jobs on several ranks."""
    (tmp_path / "shared.py").write_text(SHARED)
    return lambda jobs, count=3, **other: launch(["shared.py", json.dumps(jobs)], tmp_path, count, **other)


def test_rank_0_gets_all_results_the_others_their_part(shared):
    jobs = {name: name for name in "abcdefg"} | {"h": "crash"}
    codes, outputs, errors = finish(shared(jobs))
    assert codes == [0, 0, 0], errors
    found = [json.loads(out) for out in outputs]
    assert found[0] == {name: name.upper() for name in "abcdefg"} | {"h": "crashes the decoder (exit code 3)"}
    assert found[1] == {name: found[0][name] for name in "beh"} and set(found[2]) == set("cf")
    codes, outputs, errors = finish(shared(jobs))  # all but the failure is remembered
    assert codes == [0, 0, 0] and json.loads(outputs[0]) == found[0], errors


def test_a_rank_that_dies_or_fails_is_told_in_one_sentence(shared, tmp_path):
    processes = shared({"a": "x", "b": "wait", "c": "y"}, timeout=10)
    for rank in range(3):
        await_file(tmp_path, f"memory/ranks-*/{rank}.json")
    processes[1].kill()
    codes, _, errors = finish(processes)
    assert codes[0] == 1 and codes[2] == 0
    assert "error: rank 1 of 3 was not heard of" in errors[0] and "run the same command again" in errors[0]
    codes, _, errors = finish(shared({"a": "x", "b": "raise", "c": "y"}))
    assert codes == [1, 1, 0] and "a bug" in errors[1] and "error: rank 1 of 3 failed" in errors[0]
    codes, _, errors = finish(shared({"a": "x", "b": "raise", "c": "y"}, late=4))  # the failure comes before rank 0
    assert codes == [1, 1, 0] and "error: rank 1 of 3 failed" in errors[0], errors
    codes, outputs, errors = finish(shared({"a": "x", "b": "z", "c": "y"}))
    assert codes == [0, 0, 0] and json.loads(outputs[0]) == {"a": "X", "b": "Z", "c": "Y"}, errors


def test_a_missing_rank_0_is_told(shared):
    codes, _, errors = finish(shared({"a": "x", "b": "y"}, count=2, timeout=3, first=1))
    assert codes == [1] and "error: rank 0 of 2 was not heard of" in errors[0]


MIXED = """
from pathlib import Path
from vw2.data.sources import mixture
from vw2.data.sources.base import IngestConfig

if __name__ == "__main__":
    listed = [{"source": "folder", "path": name, "weight": 1} | {"name": name} for name in "ab"]
    config = IngestConfig(listed, time_limit=60.0)
    print(*sorted(item.id for item in mixture.entries(config, None, Path("work"), 1)))
"""


def test_a_rank_may_get_nothing_of_an_entry_of_a_mixture(tmp_path):
    for name, films in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        for number in range(films):
            write_raw(tmp_path / name / f"{number}.mp4", map(numbered_frame, range(4 + number)))
    (tmp_path / "mixed.py").write_text(MIXED)
    codes, outputs, errors = finish(launch(["mixed.py"], tmp_path, 2, timeout=60))
    assert codes == [0, 0], errors
    assert outputs[0].split() == ["a.0", "b.0", "b.1"] and len(outputs[1].split()) == 1


def test_place(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert ranks.place() == (0, 1) and not ranks.helps() and ranks.share(10) == 10
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank, part in (("0", 10), ("1", 3), ("2", 3)):
        monkeypatch.setenv("RANK", rank)
        assert ranks.share(10) == part and ranks.helps() == (rank != "0")
    for wrong in ("3", "-1", "one"):
        monkeypatch.setenv("RANK", wrong)
        with pytest.raises(UserError, match="RANK below WORLD_SIZE"):
            ranks.place()


def run_stage(folder, name, count):
    codes, _, errors = finish(launch(["-m", f"stages.{name}"], folder, count))
    assert codes == [0] * count, errors
    if count > 1:
        assert not list(folder.glob(".vw2/*/*"))  # scratch is cleared


def outputs(folder):
    """Digests of all outputs but what the run cost."""
    found = {name: value for kind in ("data", "metrics", "plots") for name, value in digest(folder / kind).items()}
    return {name: value for name, value in found.items() if not name.startswith("runtime/")}


@pytest.mark.slow
@pytest.mark.parametrize("source", ["craft", "folder"])
def test_stages_give_the_same_bytes_on_three_ranks_and_go_on_after_one_died(tmp_path, source):
    one, three = tmp_path / "one", tmp_path / "three"
    for folder in (one, three):
        (folder / "films/stack").mkdir(parents=True)
        parameters(folder, **({"source": "folder", "path": "films"} if source == "folder" else {}))
    for number in range(5):
        write_raw(one / f"films/stack/{number}.mp4", map(numbered_frame, range(40 + number)))
    (one / "films/broken.mp4").write_text("not a video")
    shutil.copytree(one / "films", three / "films", dirs_exist_ok=True)
    if source == "craft":
        first = launch(["-m", "stages.ingest"], three, 3, timeout=20)
        await_file(three, ".vw2/ingest/*/entries/*.json")
        first[1].kill()
        codes, _, errors = finish(first)
        assert codes[0] == 1 and "of 3 was not heard of" in errors[0] and "Traceback" not in errors[0]
        assert not (three / "data").exists() and list(three.glob(".vw2/ingest/*/entries/*.json"))
    for name in ("ingest", "clip"):
        run_stage(one, name, 1)
        run_stage(three, name, 3)
    assert outputs(one) == outputs(three) and "clips/frames-00000.npy" in outputs(one)
