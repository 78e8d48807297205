"""Fingerprints change with every input and only with those; outputs appear whole or not at all."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from vw2 import scratch
from vw2.console import UserError


@dataclass(frozen=True)
class Config:
    width: int


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("clips").mkdir()
    Path("clips/a.npy").write_bytes(b"a")
    Path("clips/b.npy").write_bytes(b"b")
    Path("code.py").write_text("x = 1\n")
    return [Path("clips")], [Path("code.py")]


def test_fingerprint_is_stable_and_order_free(inputs):
    data, code = inputs
    one = scratch.fingerprint({"a": 1, "b": (2, Path("x"))}, data, code)
    assert one == scratch.fingerprint({"b": [2, "x"], "a": 1}, data, code)
    assert len(one) == 16 and int(one, 16) >= 0
    # absolute paths below the working directory count like relative ones: queued runs work elsewhere
    assert one == scratch.fingerprint({"a": 1, "b": [2, "x"]}, [path.absolute() for path in data], code)
    assert scratch.fingerprint({"c": Config(3)}, [], []) == scratch.fingerprint({"c": {"width": 3}}, [], [])


def test_fingerprint_sees_every_change(inputs):
    data, code = inputs
    seen = {scratch.fingerprint({"a": 1}, data, code), scratch.fingerprint({"a": 2}, data, code)}
    seen.add(scratch.fingerprint({"a": 1.0}, data, code))
    Path("clips/a.npy").write_bytes(b"A")
    seen.add(scratch.fingerprint({"a": 1}, data, code))
    Path("clips/a.npy").rename("clips/c.npy")
    seen.add(scratch.fingerprint({"a": 1}, data, code))
    Path("code.py").write_text("x = 2\n")
    seen.add(scratch.fingerprint({"a": 1}, data, code))
    seen.add(scratch.fingerprint({"a": 1}, [], [*data, *code]))
    assert len(seen) == 7


def test_fingerprint_ignores_caches_and_partial_files(inputs):
    data, code = inputs
    before = scratch.fingerprint({}, data, code)
    Path("clips/__pycache__").mkdir()
    Path("clips/__pycache__/x.pyc").write_bytes(b"x")
    Path("clips/.c.partial.npy").write_bytes(b"x")
    assert scratch.fingerprint({}, data, code) == before


def test_fingerprint_missing_input(inputs):
    with pytest.raises(UserError, match="nowhere does not exist"):
        scratch.fingerprint({}, [Path("nowhere")], [])


def test_scratch_dir_prefers_the_variable_then_the_real_workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VW2_SCRATCH", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert scratch.scratch_dir("train_ar", "abc") == Path(".vw2/train_ar/abc")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "workspace"))
    assert scratch.scratch_dir("train_ar", "abc") == tmp_path / "workspace/.vw2/train_ar/abc"
    monkeypatch.setenv("VW2_SCRATCH", str(tmp_path / "fast"))
    path = scratch.scratch_dir("train_ar", "abc")
    assert path == tmp_path / "fast/train_ar/abc" and path.is_dir()


def test_pictures_outlive_a_temporary_run(tmp_path, monkeypatch):
    real, temporary = tmp_path / "real", tmp_path / "temporary"
    picture = Path("plots/codes.png")
    for folder in (real, temporary):
        (folder / "plots").mkdir(parents=True)
        (folder / picture).write_text(folder.name)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(real)
    assert scratch.lasting(picture) == picture
    monkeypatch.setenv("DVC_ROOT", str(real))
    assert scratch.lasting(picture) == picture
    monkeypatch.chdir(temporary)
    kept = scratch.lasting(picture)
    assert kept.is_relative_to(real / ".vw2") and kept.read_text() == "temporary"
    assert scratch.lasting(Path("plots/none.png")) == Path("plots/none.png"), "not drawn yet"


def test_clear_keeps_other_fingerprints(tmp_path, monkeypatch):
    monkeypatch.setenv("VW2_SCRATCH", str(tmp_path))
    one, other = scratch.scratch_dir("s", "1"), scratch.scratch_dir("s", "2")
    (one / "state").write_text("x")
    scratch.clear(one)
    assert not one.exists() and other.is_dir()
    scratch.clear(other)
    assert not (tmp_path / "s").exists()
    scratch.clear(other)  # nothing there: nothing to do


RUN = """
from vw2.scratch import clear, scratch_dir
path = scratch_dir("clip", "1")
print(sorted(file.name for file in path.iterdir()), flush=True)
(path / "state").write_text("x")
if input() == "ends":
    clear(path)
"""


@pytest.mark.parametrize("end, left", [("ends", "[]"), ("is stopped", "['state']")])
def test_a_second_run_of_the_same_waits_for_the_first(tmp_path, monkeypatch, end, left):
    monkeypatch.setenv("VW2_SCRATCH", str(tmp_path))
    monkeypatch.delenv("RANK", raising=False)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    start = lambda said: subprocess.Popen([sys.executable, "-c", RUN], **pipes, stderr=said.open("w"))  # noqa: E731
    runs = [start(tmp_path / "one")]
    try:
        assert runs[0].stdout.readline() == "[]\n"
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(UserError, match="another run is at work in .*clip.1; start this one when"):
            scratch.scratch_dir("clip", "1")
        monkeypatch.delenv("WORLD_SIZE")
        runs.append(start(tmp_path / "other"))
        deadline = time.monotonic() + 60
        while "another run of clip" not in (tmp_path / "other").read_text():
            assert time.monotonic() < deadline and runs[1].poll() is None
            time.sleep(0.05)
        runs[0].communicate(f"{end}\n", 60)
        found, _ = runs[1].communicate("ends\n", 60)
        assert found == f"{left}\n", "what a finished run cleared, and a stopped one left"
    finally:
        for each in runs:
            each.kill()
    assert not (tmp_path / "clip").exists()


def test_atomic_file_appears_whole(tmp_path):
    target = tmp_path / "new" / "index.parquet"
    with scratch.atomic_file(target) as temporary:
        assert temporary.parent == target.parent and temporary.suffix == ".parquet"
        temporary.write_text("one")
        assert not target.exists()
    assert target.read_text() == "one" and [path.name for path in target.parent.iterdir()] == ["index.parquet"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_atomic_file_failure_leaves_the_old_one(tmp_path, error):
    target = tmp_path / "x.json"
    target.write_text("old")
    with pytest.raises(error):
        with scratch.atomic_file(target) as temporary:
            temporary.write_text("half")
            raise error
    assert target.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_atomic_file_does_not_write_through_a_cache_link(tmp_path):
    """DVC may hand out outs as hard links into its cache: replacing must not change the cached object."""
    cached, target = tmp_path / "cached", tmp_path / "out.bin"
    cached.write_text("cached")
    target.hardlink_to(cached)
    with scratch.atomic_file(target) as temporary:
        temporary.write_text("new")
    assert cached.read_text() == "cached" and target.read_text() == "new"


def test_atomic_file_that_was_not_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        with scratch.atomic_file(tmp_path / "x"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_atomic_dir_replaces_the_whole(tmp_path):
    target = tmp_path / "clips"
    target.mkdir()
    (target / "old").write_text("old")
    (tmp_path / ".clips.partial").mkdir()
    (tmp_path / ".clips.partial" / "left by a killed run").write_text("x")
    with scratch.atomic_dir(target) as temporary:
        assert list(temporary.iterdir()) == []
        (temporary / "sub").mkdir()
        (temporary / "sub" / "new").write_text("new")
        assert (target / "old").exists()
    assert [path.name for path in target.iterdir()] == ["sub"] and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_atomic_dir_failure_leaves_the_old_one(tmp_path, error):
    target = tmp_path / "clips"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(error):
        with scratch.atomic_dir(target) as temporary:
            (temporary / "half").write_text("x")
            raise error
    assert [path.name for path in target.iterdir()] == ["old"] and len(list(tmp_path.iterdir())) == 1


def test_atomic_dir_failing_at_the_swap_puts_the_old_one_back(tmp_path, monkeypatch):
    target = tmp_path / "clips"
    target.mkdir()
    (target / "old").write_text("old")
    real = scratch.os.replace

    def replace(source, destination):
        if Path(source).name == ".clips.partial":
            raise OSError("no luck")
        real(source, destination)

    monkeypatch.setattr(scratch.os, "replace", replace)
    with pytest.raises(OSError, match="no luck"):
        with scratch.atomic_dir(target) as temporary:
            (temporary / "new").write_text("x")
    assert [path.name for path in target.iterdir()] == ["old"] and len(list(tmp_path.iterdir())) == 1
