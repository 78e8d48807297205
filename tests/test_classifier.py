"""The step classifier: labelling rule, frames and their truth, augmentation, model, report and stage."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from ruamel.yaml import YAML
from tiny_models import tiny_prior

from stages import train_classifier as stage
from vw2.console import UserError
from vw2.data import manifest
from vw2.data.shards import ClipStore, write_shards
from vw2.data.sources.craft import TRUTH
from vw2.evaluation import labels, step_report
from vw2.evaluation.labels import CLASSES, IGNORED, label_frames
from vw2.models.classifier import BackboneConfig, ClassifierConfig, FrameBatch, StepClassifier, load_classifier
from vw2.models.layers import device_of
from vw2.models.prior import PriorModelConfig
from vw2.training import augment, frames
from vw2.training import classifier as classifier_training
from vw2.training.compute import generator
from vw2.training.run import OptimConfig
from vw2.worlds.craft import CraftConfig, render_video

NAMES = ("a", "b", "c", "d")
CPU = torch.device("cpu")
TINY = ClassifierConfig(BackboneConfig(embedding=8, hidden=(8, 16), depths=(1, 1)), size=16)
STILL = augment.AugmentConfig(**dict.fromkeys(vars(augment.AugmentConfig()), 0.0))


def tiny_model(config: ClassifierConfig = TINY) -> StepClassifier:
    torch.manual_seed(0)
    return StepClassifier(config, NAMES)


def random_batch(count: int = 8, side: int = 16) -> FrameBatch:
    rng = generator(0, 1)
    return FrameBatch(
        frames=torch.rand((count, 3, side, side), generator=rng) * 2 - 1,
        label=torch.arange(count) % len(NAMES),
        hand=torch.rand((count, 2), generator=rng),
        visible=(torch.arange(count) % 2).float(),
        angle=torch.rand(count, generator=rng),
    )


# The labelling rule


@pytest.mark.parametrize(
    ("task", "step", "busy", "name"),
    [
        ("paper_airplane", 0, False, "paper_0"),
        ("paper_boat", 0, False, "paper_0"),  # a flat sheet does not tell the task
        ("paper_boat", 1, False, "paper_boat_1"),
        ("paper_airplane", 7, False, "paper_airplane_7"),
        ("paper_airplane", 3, True, None),
        ("paper_boat", -1, False, "failed"),
        ("paper_boat", -1, True, None),
        ("block_tower", 0, False, "blocks_open"),
        ("block_horse", 3, False, "blocks_open"),
        ("block_horse", 4, False, "block_horse"),
        ("block_person", 4, False, "block_person"),
        ("block_person", 4, True, None),
        ("block_tower", -1, False, "failed"),
    ],
)
def test_label_rule(task, step, busy, name):
    number = IGNORED if name is None else CLASSES.index(name)
    assert label_frames([task], [step], [busy]).tolist() == [number]


def test_labels_of_many_frames():
    found = label_frames(["paper_boat", "block_tower", "paper_boat"], [2, 4, 0], [False, False, True])
    assert found.tolist() == [CLASSES.index("paper_boat_2"), CLASSES.index("block_tower"), IGNORED]
    assert len(label_frames([], [], [])) == 0
    assert len(CLASSES) == len(set(CLASSES)) == 1 + 14 + 1 + 3 + 1


@pytest.mark.parametrize(("task", "step"), [("paper_boat", 8), ("block_tower", 5), ("juggling", 0), ("paper_boat", -2)])
def test_label_rule_refuses_what_the_world_does_not_have(task, step):
    with pytest.raises(ValueError, match="expected a task of paper_airplane"):
        label_frames([task], [step], [False])
    with pytest.raises(ValueError, match="one shape"):
        label_frames(["paper_boat"], [1, 2], [False])


# The model


def test_shapes_and_finite_loss():
    model, batch = tiny_model(), random_batch()
    logits, hand, visible, angle = model.heads(batch.frames)
    assert [tuple(each.shape) for each in (logits, hand, visible, angle)] == [(8, 4), (8, 2), (8,), (8,)]
    loss, logs = model(batch)
    loss.backward()
    assert torch.isfinite(loss) and set(logs) == {"class", "accuracy", "visible", "hand", "angle"}
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_overfits_one_batch():
    model, batch = tiny_model(), random_batch()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    first = None
    for _ in range(80):
        loss, logs = model(batch)
        first = first or float(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1 * first and logs["accuracy"] == 1
    assert logs["hand"] < 0.1 and logs["angle"] < 0.1


def test_ignored_frames_give_no_gradient():
    model, batch = tiny_model(), random_batch()
    nothing = replace(
        batch,
        label=torch.full((8,), IGNORED),
        hand=torch.full((8, 2), torch.nan),
        visible=torch.full((8,), torch.nan),
        angle=torch.full((8,), torch.nan),
    )
    loss, _ = model(nothing)
    loss.backward()
    assert loss == 0 and all((p.grad == 0).all() for p in model.parameters())
    model.eval()  # running statistics: frames do not see each other
    mixed = FrameBatch(*(torch.cat([getattr(batch, n), getattr(nothing, n)]) for n in batch.__dataclass_fields__))
    assert torch.allclose(model(mixed)[0], model(batch)[0])


def test_hidden_hands_have_no_place():
    model, batch = tiny_model().eval(), random_batch()
    moved = replace(batch, hand=torch.where(batch.visible[:, None] == 1, batch.hand, torch.nan))
    assert model(moved)[0] == model(batch)[0]


def test_prediction_does_not_depend_on_the_batch():
    model = tiny_model().train()
    pictures = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
    whole = model.predict(pictures)
    assert model.training
    assert {name: value.shape for name, value in whole.items()} == {
        "class": (7, 4),
        "hand": (7, 2),
        "visible": (7,),
        "angle": (7,),
    }
    assert np.allclose(whole["class"].sum(1), 1, atol=1e-5)
    floats = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
    for other in (model.predict(pictures, batch=2), model.predict(floats), model.predict(pictures, batch=1)):
        assert all(np.allclose(whole[name], other[name], atol=1e-5) for name in whole)
    assert {len(value) for value in model.predict(pictures[:0]).values()} == {0}
    assert model.predict(pictures.repeat(2, 1).repeat(2, 2))["class"].shape == (7, 4)  # another size is scaled


def test_saved_and_loaded(tmp_path):
    model = tiny_model()
    model(random_batch())  # moves the running statistics
    model.save(tmp_path, {"seed": 0})
    loaded = load_classifier(tmp_path)
    assert loaded.names == NAMES and loaded.config == TINY and not loaded.training
    pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    assert all((model.predict(pictures)[name] == value).all() for name, value in loaded.predict(pictures).items())
    with pytest.raises(UserError, match="dvc repro train_classifier"):
        load_classifier(tmp_path / "nowhere")


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory) -> Path:
    """A tiny DINOv2 with random weights, as the hub would give it."""
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("dino")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    torch.manual_seed(1)
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("frozen", [True, False])
def test_dinov2_from_disk(dino_folder, tmp_path, frozen):
    weights = tmp_path / "weights"
    shutil.copytree(dino_folder, weights)
    config = ClassifierConfig(BackboneConfig(kind="dinov2", frozen=frozen, weights=str(weights)), size=28)
    model = tiny_model(config).train()
    loss, _ = model(random_batch(side=28))
    loss.backward()
    assert model.classes.weight.grad.abs().sum() > 0
    moved = [p.grad is not None and bool(p.grad.any()) for p in model.backbone.parameters()]
    assert any(moved) is not frozen and model.backbone.training is not frozen
    model.save(tmp_path / "out", {})
    shutil.rmtree(weights)  # a trained classifier does not need the hub any more
    pictures = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    said = load_classifier(tmp_path / "out").predict(pictures)
    assert all((model.predict(pictures)[name] == value).all() for name, value in said.items())


def test_bad_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match="size must be at least 1"):
        ClassifierConfig(size=0)
    with pytest.raises(ValueError, match="multiple of 14"):
        ClassifierConfig(BackboneConfig(kind="dinov2"), size=64)
    with pytest.raises(ValueError, match="one number per stage"):
        BackboneConfig(hidden=(8, 16), depths=(1,))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="classifier.model.backbone.weights"):
        StepClassifier(ClassifierConfig(BackboneConfig("dinov2", weights=str(tmp_path / "empty")), size=28), NAMES)


# Augmentation


def test_augmentation_is_a_function_of_its_generator():
    batch, config = random_batch(), augment.AugmentConfig()
    one, same = (augment.augment(batch, config, generator(0, 7)) for _ in range(2))
    other = augment.augment(batch, config, generator(0, 8))
    assert torch.equal(one.frames, same.frames) and torch.equal(one.hand, same.hand)
    assert not torch.equal(one.frames, other.frames)
    assert one.frames.shape == batch.frames.shape and one.frames.abs().max() <= 1
    assert torch.equal(one.label, batch.label) and torch.equal(one.angle, batch.angle)


def test_strength_zero_changes_only_the_order_of_channels():
    batch = random_batch()
    out = augment.augment(batch, STILL, generator(0, 3))
    assert torch.allclose(out.frames.sort(1).values, batch.frames.sort(1).values, atol=1e-5)
    assert torch.allclose(out.hand, batch.hand, atol=1e-6) and torch.equal(out.visible, batch.visible)


def test_blur_spreads_a_dot_by_its_width():
    dots = torch.zeros(3, 3, 33, 33)
    dots[:, :, 16, 16] = 1
    out = augment.blur(dots, torch.tensor([0.0, 0.03, 0.06]), 0.06)
    away = (torch.arange(33) - 16.0) ** 2
    spread = (out.sum(2) * away).sum(-1).sqrt()  # of a column sum: the standard deviation, pixels
    assert torch.allclose(spread, torch.tensor([0.0, 0.99, 1.98])[:, None].expand(3, 3), atol=0.02)
    assert torch.allclose(out.sum((2, 3)), torch.ones(3, 3), atol=1e-5)
    assert torch.equal(out[0], dots[0])
    with pytest.raises(ValueError, match="factors of at most 1"):
        replace(STILL, blur=1.5)


def test_hand_moves_with_the_picture():
    side, count = 32, 16
    true = torch.rand((count, 2), generator=generator(0, 4)) * 0.5 + 0.25
    axis = (torch.arange(side) + 0.5) / side
    spot = lambda centre: (-((axis - centre[:, None]) ** 2) / 0.003).exp()  # noqa: E731
    picture = spot(true[:, 1])[:, :, None] * spot(true[:, 0])[:, None]
    dots = FrameBatch(
        picture[:, None].repeat(1, 3, 1, 1), torch.zeros(count).long(), true, torch.ones(count), true[:, 0]
    )
    moving = replace(STILL, shift=0.1, zoom=0.1, turn=20.0, tilt=0.1)
    out = augment.augment(dots, moving, generator(0, 5))
    mass = out.frames[:, 0].clamp(min=0)
    seen = torch.stack([(mass.sum(1) * axis).sum(1), (mass.sum(2) * axis).sum(1)], 1) / mass.sum((1, 2))[:, None]
    assert (seen - out.hand).abs().max() < 0.01 < (true - out.hand).abs().max()
    away = augment.augment(replace(dots, hand=torch.full((count, 2), 2.0)), moving, generator(0, 5))
    assert (away.visible == 0).all()


# Frames with truth

LENGTHS = {"train_0": 17, "train_1": 12, "fail_0": 9, "test_0": 20, "test_1": 9}
TASKS = {"train_0": "paper_boat", "train_1": "block_tower", "fail_0": "paper_boat", "test_0": "paper_boat"}


def truth_of(video: str, count: int) -> pl.DataFrame:
    """Step 1 from frame 6 on, a flap in motion just before; the hand is where the frame number says."""
    number = np.arange(count)
    moving = (number >= 3) & (number < 6)
    columns = {"video": [video] * count, "frame": number, "step": (number >= 6).astype(int), "busy": moving}
    columns |= {"fold_angle": np.where(moving, 45.0 * (number - 2), 0), "hand_x": number / 32, "hand_y": number / 64}
    return pl.DataFrame(columns | {"hand_visible": number % 2 == 0, "action": number * 0}).select(*TRUTH).cast(TRUTH)


def write_world(root: Path, truth: bool = True) -> None:
    """Clips of 5 frames; the frames of every video are grey, value 50 * its number + the frame's number."""
    (root / "data" / "clips").mkdir(parents=True)
    videos, entries = [], []
    for number, (name, count) in enumerate(LENGTHS.items()):
        grey = np.broadcast_to((50 * number + np.arange(count))[:, None, None, None], (count, 16, 16, 3))
        (root / f"{name}.raw").write_bytes(grey.astype(np.uint8).tobytes())
        split, task = name.split("_")[0], TASKS.get(name, "block_tower")
        videos.append((name, split, task, root / f"{name}.raw", count))
        about = {"source": "craft", "path": f"{name}.mp4", "environment": f"{split}-x", "instruction": "fold"}
        size = {"fps": 16.0, "frames": count, "width": 16, "height": 16, "codec": "h264"}
        entries.append(manifest.Entry(id=name, split=split, task=task, hash=name, licence="x", **about, **size))
    write_shards(root / "data" / "clips", videos, {"frames": 5, "fps": 16.0, "height": 16, "width": 16})
    manifest.write(root / "data" / "manifest.parquet", manifest.build(entries))
    parts = [truth_of(name, count) for name, count in LENGTHS.items()] if truth else []
    pl.concat([pl.DataFrame(schema=TRUTH), *parts]).write_parquet(root / "data" / "truth.parquet")


@pytest.fixture
def world(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VW2_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.delenv("DVC_ROOT", raising=False)
    write_world(tmp_path)
    return tmp_path


def read_rows(world: Path, splits, entries: pl.DataFrame | None = None) -> tuple[ClipStore, pl.DataFrame]:
    store = ClipStore(world / "data" / "clips")
    truth = pl.read_parquet(world / "data" / "truth.parquet")
    taken = manifest.read(world / "data" / "manifest.parquet") if entries is None else entries
    return store, frames.frame_rows(store, truth, taken, splits)


def test_every_frame_has_its_truth(world):
    store, rows = read_rows(world, ("train", "fail"))
    real = frames.real_frames(store, rows, 16, world / "real.npy")
    assert len(real) == 17 + 12 + 9
    assert set(rows["split"]) == {"train", "fail"} and set(rows["environment"]) == {"train-x", "fail-x"}
    number = {name: i for i, name in enumerate(LENGTHS)}
    wanted = [50 * number[video] + shown for video, shown in rows.select("video", "shown").iter_rows()]
    assert real.pixels[:, 3, 4, 0].tolist() == wanted
    assert np.allclose(rows["hand_x"], rows["shown"] / 32)
    again = frames.real_frames(None, rows, 16, world / "real.npy")  # kept: the store is not asked
    assert again.pixels[:, 3, 4, 0].tolist() == wanted


def test_in_a_cropped_picture_nobody_knows_where_the_hand_is(world):
    wide = manifest.read(world / "data" / "manifest.parquet").with_columns(width=2 * pl.col("width"))
    _, rows = read_rows(world, ("train", "fail"), wide)
    targets = frames.frame_targets(rows, np.zeros(len(rows)))
    assert targets.hand.isnan().all() and targets.visible.isnan().all() and not rows["step"].null_count()


def test_truth_is_found_at_another_frame_rate(world):
    entries = manifest.read(world / "data" / "manifest.parquet").with_columns(fps=pl.lit(8.0))
    _, rows = read_rows(world, ("test",), entries)  # clips at twice the rate of the video: frames repeat
    assert np.allclose(rows["hand_x"], (rows["shown"] // 2) / 32)


def test_missing_truth_is_told(world):
    truth = pl.read_parquet(world / "data" / "truth.parquet").filter(pl.col("video") != "train_1")
    truth.write_parquet(world / "data" / "truth.parquet")
    with pytest.raises(UserError, match="12 have none, the first in video train_1"):
        read_rows(world, ("train",))


class Brighter:
    """Stands in for the VAE: adds one level to every pixel; insists on 1 + 4m frames."""

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        assert video.shape[2] % 4 == 1
        return video

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents + 1 / 127.5


def test_frames_through_the_vae(world):
    store, rows = read_rows(world, ("train", "fail"))
    passed = frames.vae_frames(store, rows, Brighter(), 2, 16, world / "vae.npy", CPU, batch=2)
    assert passed.rows.columns == rows.columns
    clips = [("train_0", 0), ("train_0", 2), ("train_1", 0), ("train_1", 2), ("fail_0", 1)]  # 4 + 3 + 2 clips
    wanted = [(v, shown) for v, clip in clips for shown in range(4 * clip, min(4 * clip + 5, LENGTHS[v]))]
    assert passed.rows.select("video", "shown").rows() == wanted
    number = {name: i for i, name in enumerate(LENGTHS)}
    assert passed.pixels[:, 0, 0, 0].tolist() == [50 * number[video] + shown + 1 for video, shown in wanted]
    assert np.allclose(passed.rows["hand_x"], passed.rows["shown"] / 32)
    odd = np.full((1, 2, 16, 16, 3), 7, np.uint8)
    assert frames.through_vae(Brighter(), odd, CPU).tolist() == (odd + 1).tolist()


def test_batches_of_several_sets(world):
    store, rows = read_rows(world, ("train",))
    real = frames.real_frames(store, rows, 16, world / "real.npy")
    passed = frames.vae_frames(store, rows, Brighter(), 2, 16, world / "vae.npy", CPU)
    sets = [real, passed]
    targets = [frames.frame_targets(each.rows, labels.label_rows(each.rows)) for each in sets]
    picks = np.array([len(real) + 1, 0, 4, 6])
    batch = frames.make_batch(sets, targets, picks)
    assert batch.frames.shape == (4, 3, 16, 16) and batch.frames.min() >= -1
    boat = CLASSES.index("paper_boat_1")
    assert batch.label.tolist() == [CLASSES.index("paper_0"), IGNORED, boat, CLASSES.index("paper_0")]
    assert batch.angle[1] == 0.5 and batch.angle[[0, 2, 3]].isnan().all()
    assert batch.hand[2].tolist() == [6 / 32, 6 / 64] and batch.visible.tolist() == [1, 1, 1, 0]


# The report


def perfect(rows: pl.DataFrame) -> dict[str, np.ndarray]:
    """What a classifier that knows the truth says; frames in motion count as failed."""
    numbers = labels.label_rows(rows)
    classes = np.eye(len(CLASSES))[np.where(numbers == IGNORED, CLASSES.index("failed"), numbers)]
    hand = np.nan_to_num(rows.select("hand_x", "hand_y").to_numpy())
    visible = rows["hand_visible"].cast(pl.Float32).to_numpy()
    return {"class": classes, "hand": hand, "visible": visible, "angle": rows["fold_angle"].to_numpy()}


@pytest.fixture(scope="module")
def demonstrations() -> pl.DataFrame:
    """Truth of three rendered test videos, as the rows of a FrameSet."""
    config = CraftConfig(resolution=32, test_paper=2, test_blocks=3)
    parts = []
    for index in range(3):
        video = render_video(config, "test", index)
        about = {"video": f"v{index}", "split": "test", "task": video.task, "environment": video.environment}
        parts.append(video.truth.rename({"frame": "shown"}).with_columns(**{k: pl.lit(v) for k, v in about.items()}))
    return pl.concat(parts)


def test_a_perfect_classifier_passes_real_demonstrations(demonstrations):
    said, numbers = perfect(demonstrations), labels.label_rows(demonstrations)
    found = step_report.frame_figures(said, numbers, demonstrations, 64, 0)
    assert found["accuracy"]["value"] == found["hand_visible"]["value"] == 1 and found["accuracy"]["n"] == 3
    assert found["hand_error"]["value"] == found["angle_error"]["value"] == found["ece"]["value"] == 0
    assert 0 < found["chance"]["value"] < 0.5
    assert {"task.paper_airplane", "task.paper_boat", "task.block_tower"} <= set(found)
    shown = {CLASSES[number] for number in np.unique(numbers[numbers != IGNORED])}
    for key in ("sensitivity", "specificity"):
        one = {name.removeprefix(f"{key}."): each["value"] for name, each in found.items() if name.startswith(key)}
        assert one == dict.fromkeys(shown, 1.0)
    ceiling = step_report.ceilings(said["class"].argmax(1), demonstrations, 3)
    assert {name: each["value"] for name, each in ceiling.items()} == {
        **{f"paper.step_{k}": 1.0 for k in range(1, 8)},
        "blocks.tower": 1.0,
    }
    assert ceiling["paper.step_7"]["n"] == 2
    counted = step_report.confusion(numbers, said["class"].argmax(1))
    assert len(counted) == (numbers != IGNORED).sum() and (counted["actual"] == counted["predicted"]).all()


def test_a_blind_classifier_has_chance_accuracy(demonstrations):
    numbers = labels.label_rows(demonstrations)
    most = np.bincount(numbers[numbers != IGNORED]).argmax()
    said = perfect(demonstrations) | {"class": np.eye(len(CLASSES))[np.full(len(numbers), most)]}
    found = step_report.frame_figures(said, numbers, demonstrations, 64, 0)
    assert found[f"sensitivity.{CLASSES[most]}"]["value"] == 1 and found[f"specificity.{CLASSES[most]}"]["value"] == 0
    other = next(CLASSES[n] for n in np.unique(numbers[numbers != IGNORED]) if n != most)
    assert found[f"sensitivity.{other}"]["value"] == 0 and found[f"specificity.{other}"]["value"] == 1
    assert found["accuracy"] == found["chance"] and found["ece"]["value"] == pytest.approx(1 - found["chance"]["value"])
    moved = said | {"hand": said["hand"] + [3 / 64, 4 / 64], "angle": said["angle"] - 7}
    off = step_report.frame_figures(moved, numbers, demonstrations, 64, 0)
    assert off["hand_error"]["value"] == pytest.approx(5) and off["angle_error"]["value"] == pytest.approx(7)
    with pytest.raises(ValueError, match="frames with a class"):
        step_report.frame_figures(said, np.full(len(numbers), IGNORED), demonstrations, 64, 0)


# The stage


def plain(value):
    """Nested dicts and tuples as YAML knows them."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return list(value) if isinstance(value, tuple) else value


def write_params(root: Path, prior: PriorModelConfig = PriorModelConfig(), hold: int = 2, **changes) -> Path:
    optim = OptimConfig(steps=20, batch=6, lr=1e-3)
    config = stage.TrainConfig(vae_every=0, optim=optim, augment=augment.AugmentConfig(), model=TINY)
    tree = {"seed": 0, "compute": {"threads": 1, "dtype": "float32"}, "prior": {"model": asdict(prior)}}
    tree["evaluate"] = {"hold": hold}
    path = root / "params.yaml"
    with path.open("w") as stream:
        YAML().dump(plain(tree | {"classifier": asdict(config) | changes}), stream)
    return path


def test_stage_keeps_the_contract(world):
    outputs = []
    for _ in range(2):
        stage.main(write_params(world))
        model = load_classifier(stage.OUT)
        assert model.names == CLASSES
        found = json.loads(Path("metrics/train_classifier.json").read_text())
        assert {"accuracy", "chance", "ece", "ceiling", "environment", "task", "seed"} <= set(found)
        assert set(found["ceiling"]["paper"]) == {f"step_{k}" for k in range(1, 8)}
        assert set(found["ceiling"]["blocks"]) == {"tower"} and found["train_frames"] == 17 + 12 + 9
        detail = json.loads(Path("metrics/detail/train_classifier.json").read_text())
        assert detail["accuracy"]["n"] == 2 and "accuracy_vae" not in found
        table = pl.read_csv(stage.CONFUSION)
        assert table.columns == ["actual", "predicted"] and len(table) == 20 + 9 - 3 - 3
        assert (stage.PLOTS / "loss.tsv").is_file() and not list((world / "scratch").rglob("*.npy"))
        outputs.append(b"".join(p.read_bytes() for p in (stage.OUT / "classifier.safetensors", stage.CONFUSION)))
        shutil.rmtree(stage.OUT)
    assert outputs[0] == outputs[1]  # to the byte


def test_the_ceiling_is_that_of_the_hold_of_evaluate(world, monkeypatch):
    """By a judge that is always right: the paper video shows step 1 in its last 14 frames, and no other."""
    right = lambda classes, rows, hold: real(perfect(rows)["class"].argmax(1), rows, hold)  # noqa: E731
    real, found = classifier_training.ceilings, {}
    monkeypatch.setattr(classifier_training, "ceilings", right)
    for hold in (14, 15):
        stage.main(write_params(world, hold=hold))
        found[hold] = json.loads(Path("metrics/train_classifier.json").read_text())["ceiling"]["paper"]
    assert found[15] == {f"step_{k}": 0 for k in range(1, 8)} and found[14] == found[15] | {"step_1": 1}


def test_stage_computes_where_the_accelerator_says(world, monkeypatch):
    """The VAE, the training and the judgement; the meta device stands for a GPU, so nothing is computed."""
    prior, where = tiny_prior(), {}
    prior.save(stage.PRIOR, {})

    def through(store, rows, vae, every, size, path, device):
        where[path.stem] = {device, vae.basis.device}

    def train(accelerator, model, *rest):
        where["train"] = {device_of(model)}
        model.to_empty(device=CPU)  # to be saved
        return SimpleNamespace(history=[])

    def judge(model, *rest):
        where["judge"] = {device_of(model)}
        return {}, step_report.confusion(np.zeros(0, int), np.zeros(0, int))

    gpu = torch.device("meta")
    monkeypatch.setattr(stage, "start", lambda *given: SimpleNamespace(device=gpu))
    for name, stand_in in (("vae_frames", through), ("train", train), ("judge", judge)):
        monkeypatch.setattr(stage, name, stand_in)
    stage.main(write_params(world, prior=prior.config, vae_every=2))
    assert where == dict.fromkeys(("train_vae", "test_vae", "train", "judge"), {gpu})


def test_stage_is_skipped_without_truth(world, capsys):
    pl.DataFrame(schema=TRUTH).write_parquet(stage.TRUTH)
    stage.main(write_params(world))
    assert "no ground truth" in json.loads((stage.OUT / "config.json").read_text())["skipped"]
    assert load_classifier(stage.OUT) is None
    assert json.loads(Path("metrics/train_classifier.json").read_text()) == {"seed": 0, "skipped": 1}
    assert pl.read_csv(stage.CONFUSION).columns == ["actual", "predicted"] and stage.PLOTS.is_dir()
    assert "no classifier: the videos have no ground truth" in " ".join(capsys.readouterr().err.split())


def test_stage_tells_what_is_wrong(world):
    with pytest.raises(UserError, match="evaluate.hold must be at least 1, got 0"):
        stage.main(write_params(world, hold=0))
    with pytest.raises(UserError, match="classifier.vae_every must be at least 0, got -1"):
        stage.main(write_params(world, vae_every=-1))
    stage.TRUTH.unlink()
    with pytest.raises(UserError, match="truth.parquet does not exist; run the stage that makes it"):
        stage.main(write_params(world))
