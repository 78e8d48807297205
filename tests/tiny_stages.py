"""A folder in which the training stages of the dLDM run in seconds: clips of a jumping square, a tiny prior, params."""

from pathlib import Path

import numpy as np
import polars as pl
from ruamel.yaml import YAML
from tiny_models import tiny_prior

from vw2.data import manifest
from vw2.data.shards import write_shards
from vw2.params import load
from vw2.patch import leaves

ROOT = Path(__file__).parents[1]
SPLITS = ("train", "train", "train", "test", "test")
SIDE, LENGTH = 32, 9  # pixels, frames of a video
OPTIM = {"steps": 2, "batch": 2, "warmup": 0, "save_every": 1}
SMALL = {
    "compute": {"threads": 1, "dtype": "float32"},
    "pretrain_ldm": {"use": False},
    "pretrain_vdm": {"use": False},
    "gates": {"enabled": False},
    "dldm": {
        "queries": 2,
        "size": 16,
        "width": 16,
        "query_width": 16,
        "history_width": 16,
        "encoder_blocks": 1,
        "decoder_blocks": 1,
        "projection": {"width": 16},
        "vdm": {"rank": 2},
    },
    "warmup_dldm": OPTIM,
    "train_plain_ldm": OPTIM,
    "train_dldm": {"optim": OPTIM, "listen_steps": 1},
}


def link_frozen(folder: Path) -> None:
    """Put the committed outputs of the frozen stages into <folder>/data."""
    (folder / "data").mkdir()
    for name in ("prior", "pretrained", "pretrained_vdm"):
        (folder / "data" / name).symlink_to(ROOT / "data" / name)


def put(tree: dict, changes: dict) -> dict:
    """`tree` with nested changes laid over it, in place."""
    for key, value in changes.items():
        tree[key] = put(tree[key], value) if isinstance(value, dict) else value
    return tree


def write_params(folder: Path, changes: dict) -> Path:
    """The committed params.yaml with SMALL and `changes` laid over it; an unknown key is an error."""
    tree = dict(load(Path(__file__).parents[1] / "params.yaml"))
    known = {key for key, _ in leaves(tree)}
    put(put(tree, SMALL), changes)
    assert {key for key, _ in leaves(tree)} == known
    with (folder / "params.yaml").open("w") as stream:
        YAML().dump(tree, stream)
    return folder / "params.yaml"


def square(number: int) -> np.ndarray:
    """(LENGTH, SIDE, SIDE, 3) uint8: a bright square that jumps, its way and colour drawn by the video's number."""
    rng = np.random.default_rng(number)
    video = np.full((LENGTH, SIDE, SIDE, 3), 40, np.uint8)
    for frame, (y, x) in zip(video, rng.integers(0, SIDE - 12, (LENGTH, 2)), strict=True):
        frame[y : y + 12, x : x + 12] = rng.integers(120, 255, 3)
    return video


def make_folder(folder: Path, frames: int) -> None:
    """Clips of T frames, manifest, no truth, the tiny prior; everything before warmup_dldm."""
    clips = folder / "data" / "clips"
    clips.mkdir(parents=True)
    entries, videos = [], []
    for number, split in enumerate(SPLITS):
        entries.append(
            manifest.Entry(
                id=f"v{number}",
                source="folder",
                path=f"v{number}.mp4",
                split=split,
                environment="table",
                task="boat",
                instruction="make a boat",
                fps=16.0,
                frames=LENGTH,
                width=SIDE,
                height=SIDE,
                codec="h264",
                hash=str(number),
                licence="CC0-1.0",
            )
        )
        raw = folder / f"v{number}.u8"
        raw.write_bytes(square(number).tobytes())
        videos.append((f"v{number}", split, "boat", raw, LENGTH))
    manifest.write(folder / "data" / "manifest.parquet", manifest.build(entries))
    write_shards(clips, videos, {"frames": frames, "fps": 16.0, "height": SIDE, "width": SIDE, "fit": "cover"})
    pl.DataFrame({"video": []}).write_parquet(folder / "data" / "truth.parquet")
    (folder / "data" / "pretrained").mkdir()
    tiny_prior().save(folder / "data" / "prior", {"prior": load(write_params(folder, {}))["prior"]})
