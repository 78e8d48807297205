"""Files that stages wrote, read again: missing or damaged ones end in a sentence that names them."""

import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from vw2.console import UserError
from vw2.files import read_json, read_table
from vw2.models.pretrained import read_weights
from vw2.models.prior import PriorModelConfig
from vw2.training.joint import JointConfig
from vw2.training.judge import pick_clips, pick_unseen
from vw2.training.pretrain_prior import PretrainConfig, render_corpus
from vw2.training.run import LongOptimConfig, OptimConfig
from vw2.worlds.craft import CraftConfig, render_prior_clip


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_tables(tmp_path):
    file, table = tmp_path / "truth.parquet", pl.DataFrame({"a": range(100)})
    with pytest.raises(UserError, match="truth.parquet does not exist; run the stage that makes it"):
        read_table(file)
    table.write_parquet(file)
    assert read_table(file).equals(table)
    cut(file)
    with pytest.raises(UserError, match="truth.parquet is no whole table .*; remove it and run the stage that makes"):
        read_table(file)


def test_weights(tmp_path):
    file, weights = tmp_path / "ldm.safetensors", {"a": torch.arange(100.0)}
    with pytest.raises(UserError, match="ldm.safetensors does not exist; run the stage that makes it"):
        read_weights(file)
    save_file(weights, file)
    assert torch.equal(read_weights(file)["a"], weights["a"])
    cut(file)
    with pytest.raises(UserError, match="ldm.safetensors is damaged .*; remove it and run the stage that makes it"):
        read_weights(file)


def test_json(tmp_path):
    file = tmp_path / "clips.json"
    file.write_text('{"frames": 17}')
    assert read_json(file) == {"frames": 17}
    for text, sentence in (('{"frames"', "clips.json is not JSON"), ("[17]", "to hold a JSON object of settings")):
        file.write_text(text)
        with pytest.raises(UserError, match=sentence):
            read_json(file)


# ---------------------------------------------------------------- settings that cannot be


def prior_config(**changes) -> PretrainConfig:
    optim = OptimConfig(1, 1, 1e-3)
    return PretrainConfig(**{"clips": 66, "frames": 5, "vae_frames": 5, "latent_noise": 0.0, "time_shift": 0.0}
                          | {"vae": optim, "vdm": optim, "model": PriorModelConfig()} | changes)  # fmt: skip


def test_corpus_of_the_prior_is_what_was_rendered(tmp_path):
    craft = CraftConfig(resolution=32)
    for _ in range(2):  # the second time from the file
        corpus = render_corpus(craft, prior_config(), tmp_path / "corpus.npy")
        assert corpus.shape == (66, 5, 32, 32, 3) and (corpus[65] == render_prior_clip(craft, 65, 5)).all()


@pytest.mark.parametrize("wrong", [{"clips": 64}, {"clips": -1}, {"frames": 16}, {"vae_frames": 9}, {"vae_frames": 1}])
def test_a_corpus_that_cannot_be(wrong):
    with pytest.raises(ValueError, match="must be"):
        prior_config(**wrong)


@pytest.mark.parametrize("wrong", [{"encoder_factor": -1.0}, {"listen_steps": -5}])
def test_a_joint_stage_that_cannot_be(wrong):
    given = {"optim": LongOptimConfig(1, 1, 1e-3), "clip_vdm_alone": False, "encoder_factor": 1.0, "listen_steps": 0}
    with pytest.raises(ValueError, match="encoder_factor and listen_steps must be at least 0, got"):
        JointConfig(**given | wrong)


# ---------------------------------------------------------------- which clips are rendered


class Splits:
    """A store that says only which videos a split has, as many whole clips each as its name is long."""

    clip_frames = 17

    def __init__(self, **splits):
        self.splits = splits
        self.rows = [(split, video) for split, videos in splits.items() for video in videos for _ in video]
        self.index = pl.DataFrame({"valid": 17, "video": [video for _, video in self.rows]})

    def videos(self, split, **_):
        return self.splits.get(split, [])

    def select(self, split, video):
        return [row for row, each in enumerate(self.rows) if each == (split, video)]


def test_unseen_clips_come_first():
    everything = Splits(train=["a", "b"], test=["c"], probe=["d"])
    assert pick_unseen(everything, 0, None, [0, 1]) == [3]
    assert pick_unseen(Splits(train=["a", "b"], test=["c"]), 0, None, [0, 1]) == [2]
    assert pick_unseen(Splits(train=["a", "b"]), 0, None, [0, 1]) == [0, 1]


def test_of_many_videos_evenly_spread_ones_are_looked_at():
    many = Splits(test=[chr(ord("a") + i) for i in range(11)])
    assert pick_clips(many, "test", 2, 0) == list(range(11)), "all of few"
    assert pick_clips(many, "test", 2, 0, most=3) == [0, 5, 10]


def test_more_clips_of_a_single_unseen_video(capsys):
    """So many that one's codes can be compared with another's; two of each where there are several videos."""
    assert len(pick_unseen(Splits(train=["a"], test=["twelve clips"]), 0, None, [0])) == 8
    assert "not compared" not in capsys.readouterr().err
    assert len(pick_unseen(Splits(train=["a"], test=["three", "clips"]), 0, None, [0])) == 4
    assert len(pick_unseen(Splits(train=["a"], test=["three"]), 0, None, [0])) == 5
    assert "only 5 clips of one video of split test: their codes are not compared" in capsys.readouterr().err
