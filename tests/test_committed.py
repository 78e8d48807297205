"""What the README says was measured is what the committed metrics say; committed weights are those of dvc.lock."""

import hashlib
import json
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COLUMNS = (  # file of the metrics, what its keys begin with
    ("evaluate", ""),
    ("plain_ldm/evaluate", ""),
    *(
        ("evaluate", f"controls.{name}.")
        for name in ("ground_truth", "ground_truth_codes", "shuffled_codes", "copy_first_frame")
    ),
)
BLOCKS = ("blocks.tower", "blocks.horse", "blocks.person")
ROWS = {  # first cell of a row: what its cells hold, and their digits
    "paper folding, step 1 of 7 done": (("paper.step_1",), 2),
    "paper folding, steps 1 to 3 done": (("paper.step_3",), 2),
    "paper folding, all 7 steps done in order": (("paper.step_7",), 2),
    "blocks, final state right (tower / horse / person)": (BLOCKS, 2),
    "PSNR beside the real video, dB": (("quality.psnr",), 1),
}


def figure(name: str, key: str) -> float | None:
    tree = json.loads((ROOT / "metrics" / f"{name}.json").read_text(encoding="utf-8"))
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


@pytest.mark.parametrize("title", ROWS)
def test_table_of_results(title):
    keys, digits = ROWS[title]
    (line,) = (line for line in README.splitlines() if line.startswith(f"| {title} |"))
    said = [cell.strip() for cell in line.strip("|").split("|")[1:]]
    measured = [[figure(file, prefix + key) for key in keys] for file, prefix in COLUMNS]
    assert said == [" / ".join("-" if value is None else f"{value:.{digits}f}" for value in row) for row in measured]


def test_sentence_of_the_state():
    text = " ".join(re.search(r"> \*\*State\.\*\*.*?\n\n", README, re.DOTALL).group().replace(">", "").split())
    own, other, copy = (figure("train_dldm", f"render.psnr{name}") for name in ("", "_other_codes", "_copy"))
    assert f"{own - copy:.1f} dB closer to the real one" in text and f"{own - other:.1f} dB closer than" in text
    for key, prefix in (("step_3", ""), ("step_3", "controls.shuffled_codes."), ("step_7", "")):
        assert f"{100 * figure('evaluate', f'{prefix}paper.{key}'):.0f} %" in text, f"{prefix}{key}"


STEPS = [f"paper.step_{k}" for k in range(1, 8)]
CONTROLS = ("ground_truth", "ground_truth_codes", "shuffled_codes", "random_codes", "copy_first_frame")
JUDGED = [*STEPS, *BLOCKS, "quality.ssim", "quality.psnr", "quality.lpips_untrained"]
JUDGED += [f"controls.{name}.{key}" for name in CONTROLS for key in (*STEPS, *BLOCKS)]
RENDERED = ["render.psnr", "render.psnr_other_codes", "render.psnr_copy", "codes.entropy_bits", "codes.used"]
CONTRACT = {  # keys by which runs are compared by machine
    "evaluate": JUDGED,
    "plain_ldm/evaluate": JUDGED,
    "train_classifier": ["accuracy"],
    "train_dldm": [*RENDERED, "codes.changed_fraction"],
    "plain_ldm/train_dldm": [*RENDERED, "codes.changed_fraction"],
}


@pytest.mark.parametrize("name", CONTRACT)
def test_contract_of_metrics(name):
    assert [key for key in CONTRACT[name] if not isinstance(figure(name, key), int | float)] == []
    for key in CONTRACT[name]:
        detail = figure(f"detail/{name}", key)
        assert set(detail) == {"value", "low", "high", "n"} and detail["value"] == figure(name, key), key


@pytest.mark.parametrize("stage", ["pretrain_prior", "pretrain_ldm", "pretrain_vdm"])
def test_outputs_of_frozen_stages_are_those_of_the_lock(stage):
    """Else a fresh clone's first `dvc repro` writes over dvc.lock."""
    lock = YAML(typ="safe").load((ROOT / "dvc.lock").read_text(encoding="utf-8"))
    for out in lock["stages"][stage]["outs"]:
        files = [ROOT / out["path"]]
        if out["md5"].endswith(".dir"):
            files = sorted(file for file in files[0].rglob("*") if file.is_file())
            assert len(files) == out["nfiles"]
        else:
            assert hashlib.md5(files[0].read_bytes()).hexdigest() == out["md5"]
        assert sum(file.stat().st_size for file in files) == out["size"], out["path"]
