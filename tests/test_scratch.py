"""Fingerprints change with every input and only with those; outputs appear whole or not at all."""

from __future__ import annotations

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


def test_clear_keeps_other_fingerprints(tmp_path, monkeypatch):
    monkeypatch.setenv("VW2_SCRATCH", str(tmp_path))
    one, other = scratch.scratch_dir("s", "1"), scratch.scratch_dir("s", "2")
    (one / "state").write_text("x")
    scratch.clear(one)
    assert not one.exists() and other.is_dir()
    scratch.clear(other)
    assert not (tmp_path / "s").exists()
    scratch.clear(other)  # nothing there: nothing to do


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
