"""Metrics files: plain finite numbers, the same keys with intervals beside them, byte-identical on repetition."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from vw2 import provenance
from vw2.console import UserError


def _read(path):
    return json.loads(path.read_text())


def test_write_metrics(tmp_path):
    values = {
        "render.psnr": {"value": 21.23456789, "low": 20.0, "high": 22.5, "n": 60},
        "render.psnr_copy": np.float32(17.5),
        "codes.used": np.int64(391),
        "accuracy": 1 / 3,
    }
    provenance.write_metrics("train_dldm", values, seed=3, n=120, root=tmp_path)
    plain, detail = _read(tmp_path / "train_dldm.json"), _read(tmp_path / "detail" / "train_dldm.json")
    assert plain == {
        "accuracy": 0.333333,
        "codes": {"used": 391},
        "n": 120,
        "render": {"psnr": 21.2346, "psnr_copy": 17.5},
        "seed": 3,
    }
    assert detail["render"]["psnr"] == {"value": 21.2346, "low": 20.0, "high": 22.5, "n": 60}
    assert detail["codes"]["used"] == {"value": 391, "low": None, "high": None, "n": 120}
    assert detail.keys() == plain.keys() and detail["seed"]["value"] == 3
    text = (tmp_path / "train_dldm.json").read_text()
    assert text.endswith("}\n") and list(plain) == sorted(plain)
    provenance.write_metrics("train_dldm", dict(reversed(values.items())), seed=3, n=120, root=tmp_path)
    assert (tmp_path / "train_dldm.json").read_text() == text


def test_stage_in_a_folder(tmp_path):
    provenance.write_metrics("plain_ldm/train_ar", {"loss": -0.0}, seed=0, root=tmp_path)
    assert (tmp_path / "plain_ldm/train_ar.json").read_text() == '{\n  "loss": 0.0,\n  "seed": 0\n}\n'
    assert (tmp_path / "detail/plain_ldm/train_ar.json").is_file()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"a.b": float("nan")}, "metric a.b.value: expected a finite number, got nan"),
        ({"a": {"value": 1.0, "low": float("-inf")}}, "metric a.low: expected a finite number"),
        ({"a": "fast"}, "metric a.value: expected a number"),
        ({"a": True}, "metric a.value: expected a number"),
        ({"a": {"low": 1.0}}, "metric a: expected the keys value, low, high, n"),
        ({"a": {"value": 1.0, "hgih": 2.0}}, "metric a: expected the keys"),
        ({"a": 1.0, "a.b": 2.0}, "metric a.b: a is already a number"),
        ({"a.b": 1.0, "a": 2.0}, "metric a is given twice"),
        ({"seed": 1}, "pass it as the argument seed"),
    ],
)
def test_bad_metrics_are_refused_before_anything_is_written(tmp_path, values, words):
    with pytest.raises(ValueError, match=words):
        provenance.write_metrics("x", values, seed=0, root=tmp_path)
    assert list(tmp_path.rglob("*.json")) == []


def test_runtime(tmp_path):
    with provenance.runtime("clip", root=tmp_path, workers=2) as record:
        record["clips_per_second"] = 12.3456789
    written = _read(tmp_path / "runtime" / "clip.json")
    assert set(written) == {"seconds", "peak_memory_gib", "workers", "clips_per_second"}
    assert written["clips_per_second"] == 12.3457 and 0 <= written["seconds"] < 5
    assert 0.005 < written["peak_memory_gib"] < 64


def test_runtime_goes_on_after_an_interruption(tmp_path, monkeypatch):
    clock = iter([10.0, 15.0, 100.0, 103.0, 200.0, 200.5])
    monkeypatch.setattr(provenance, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    for _ in range(2):  # 5 seconds, then 3
        with pytest.raises(KeyboardInterrupt):
            with provenance.runtime("teach", tmp_path, tmp_path / "scratch" / "seconds", steps=20):
                raise KeyboardInterrupt
    assert list(tmp_path.rglob("*.json")) == []
    with provenance.runtime("teach", tmp_path, tmp_path / "scratch" / "seconds", steps=20):
        pass
    written = _read(tmp_path / "runtime" / "teach.json")
    assert (written["seconds"], written["steps"]) == (8.5, 20)


def test_runtime_of_a_failure_is_not_recorded(tmp_path):
    with pytest.raises(RuntimeError):
        with provenance.runtime("clip", root=tmp_path):
            raise RuntimeError
    assert list(tmp_path.rglob("*.json")) == []


def test_frozen_output_of_other_parameters_is_refused():
    made = {"clips": 8, "vdm": {"betas": (0.9, 0.99), "lr": 1e-3}}
    provenance.check_record(made, {"clips": 8.0, "vdm": {"betas": [0.9, 0.99], "lr": 1e-3}}, "prior", "make it")
    with pytest.raises(UserError, match=r"prior\.vdm\.lr 0\.001, params\.yaml says 0\.002.*: make it"):
        provenance.check_record(made, {"clips": 8, "vdm": {"betas": [0.9, 0.99], "lr": 2e-3}}, "prior", "make it")
    with pytest.raises(UserError, match="prior.more None, params.yaml says 1"):
        provenance.check_record(made, {**made, "more": 1}, "prior", "make it")
