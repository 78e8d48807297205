"""The stage of the prior at tiny size: what it leaves, and that it leaves the same again but for the time it took."""

from pathlib import Path

import pytest
from tiny_stages import OPTIM, write_params

from stages.pretrain_prior import OUT, main
from vw2.files import read_json

VDM = {"layers": 1, "heads": 2, "head_width": 16, "adaln_rank": 4, "context": 12}


@pytest.mark.parametrize(("channels", "logs", "steps"), [([], {"vdm"}, 2), ([4, 4, 4], {"vae", "vdm"}, 4)])
def test_weights_and_logs_are_the_same_again_and_the_time_stands_elsewhere(
    tmp_path, monkeypatch, channels, logs, steps
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VW2_SCRATCH", str(tmp_path / "scratch"))
    model = {"vae": {"channels": channels, "latent": 6}, "vdm": VDM}
    prior = {"clips": 66, "frames": 5, "vae_frames": 5, "vae": OPTIM, "vdm": OPTIM, "model": model}
    params = write_params(tmp_path, {"craft": {"resolution": 32}, "prior": prior})
    made = []
    for _ in range(2):
        main(params)
        made.append({file.name: file.read_bytes() for file in OUT.iterdir()})
    assert made[0] == made[1]
    names = {"config.json", "vae.safetensors", "transformer.safetensors"}
    assert set(made[0]) == names | {f"{name}.tsv" for name in logs}
    spent = read_json(Path("benchmarks/runtime/pretrain_prior.json"))
    assert spent["steps"] == steps and spent["seconds"] > 0
    assert not Path("metrics/runtime").exists() and not list((tmp_path / "scratch").rglob("*.npy"))
