"""Errors end in one sentence and the right exit code; progress and tables are readable in a log file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vw2 import console

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = '''"""A tiny thing.

In:  nothing.
Out: nothing either.
"""
from __future__ import annotations
import os, time
from pathlib import Path
import typer
from vw2 import console

def main(params: Path = typer.Option("params.yaml", help="parameters"), how: str = "fine") -> None:
    """Do a tiny thing."""
    if how == "user":
        raise console.UserError("ar.lr: expected a number, got [bold]; " + "change it " * 30)
    if how == "full":
        with open("/dev/full", "w") as stream:
            stream.write("x" * 100_000)
    if how == "full_words":
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    if how == "full_numpy":
        raise OSError("8192 requested and 4080 written")
    if how == "read_only":
        import errno
        raise OSError(errno.EROFS, "Read-only file system", "data/dldm")
    if how == "missing":
        open("nowhere/file.mp4")
    if how == "directory":
        open("/")
    if how == "bug":
        raise ValueError("a bug")
    if how == "wait":
        print("ready", flush=True)
        time.sleep(60)

console.run(main)
'''


@pytest.fixture
def script(tmp_path):
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    return file


def _environment(**more):
    return {k: v for k, v in os.environ.items() if k != "VW2_DEBUG"} | {"PYTHONPATH": str(ROOT)} | more


def _run(script, *arguments, **more):
    return subprocess.run(
        [sys.executable, str(script), *arguments], env=_environment(**more), capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("user", ["ar.lr: expected a number, got [bold]; change it"]),
        ("full", ["disk is full"]),
        ("full_words", ["disk is full"]),
        ("full_numpy", ["disk is full"]),
        ("missing", ["nowhere/file.mp4 does not exist"]),
        ("directory", ["/: is a directory"]),
        ("read_only", ["data/dldm: read-only file system"]),
    ],
)
def test_expected_failures_are_one_sentence(script, how, words):
    done = _run(script, "--how", how)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr
    assert done.stdout == ""


def test_debug_shows_the_traceback(script):
    done = _run(script, "--how", "user", VW2_DEBUG="1")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_bugs_keep_their_traceback(script):
    done = _run(script, "--how", "bug")
    assert done.returncode == 1 and "Traceback" in done.stderr and "ValueError: a bug" in done.stderr


def test_success_and_help(script):
    assert _run(script).returncode == 0
    done = _run(script, "--help")
    assert done.returncode == 0 and "Do a tiny thing." in done.stdout and "--params" in done.stdout
    *_, a, b, c, d = (line.strip() for line in done.stdout.splitlines())
    assert (a, b, c, d) == ("A tiny thing.", "", "In:  nothing.", "Out: nothing either."), "the module, as it is"


def test_ctrl_c_exits_with_130(script):
    process = subprocess.Popen(
        [sys.executable, str(script), "--how", "wait"],
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.startswith("error: interrupted") and errors.count("\n") == 1, errors


def test_track_yields_everything(capsys):
    assert list(console.track(range(5), "frames")) == [0, 1, 2, 3, 4]
    assert list(console.track((x for x in "ab"), "letters")) == ["a", "b"]


def test_plain_progress_line(monkeypatch, capsys):
    monkeypatch.setattr(console.console, "_force_terminal", False)
    monkeypatch.setattr(console, "PLAIN_INTERVAL", 0.0)
    with console.progress(1200, "step") as bar:
        bar.resume(299)
        bar.advance(1, loss=0.187345, codes="391/1000")
    first, last = capsys.readouterr().err.strip().split("\n")
    assert first.startswith("step 0300/1200 (25.0%) | loss 0.1873 | codes 391/1000 | ")
    assert "eta" in first and last.startswith("step 0300/1200")


def test_table_flattens_groups(capsys):
    console.table("resolved", {"dldm": {"codebook": 1000, "levels": [8, 5]}, "lr": 1e-4})
    text = capsys.readouterr().err
    assert "dldm.codebook" in text and "1000" in text and "[8, 5]" in text and "0.0001" in text
    console.table("changes", [{"key": "a.b", "old": 1, "new": 2}, {"key": "c"}])
    assert "old" in capsys.readouterr().err
    console.table("pairs", [("a", 1)])
    console.table("nothing", [])


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (42, "42s"), (185, "3m05s"), (15120, "4h12m")])
def test_duration(seconds, text):
    assert console.duration(seconds) == text
