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
        for name in ("ground_truth", "ground_truth_codes", "shuffled_codes", "random_codes", "copy_first_frame")
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


def percent(key: str, prefix: str = "", name: str = "evaluate") -> str:
    return f"{100 * figure(name, prefix + key):.0f} %"


def built(prefix: str = "") -> str:
    return f"{100 * sum(figure('evaluate', prefix + key) for key in BLOCKS) / 3:.0f} %"


def test_sentences_of_the_state():
    text = " ".join(re.search(r"> \*\*State\.\*\*.*?\n\n", README, re.DOTALL).group().replace(">", "").split())
    own, other, copy = (figure("train_dldm", f"render.psnr{name}") for name in ("", "_other_codes", "_copy"))
    real, shuffled, random = (f"controls.{name}_codes." for name in ("ground_truth", "shuffled", "random"))
    tower, horse, person = map(percent, BLOCKS)
    for words in (
        f"{own - copy:.1f} dB closer to the real one",
        f"{own - other:.1f} dB closer than",
        f"fold {percent('paper.step_7')} of the papers to the end",
        f"the real video's own codes: {percent('paper.step_7', real)}; shuffled codes: none",
        f"planes {percent('tasks.paper_airplane')} and boats {percent('tasks.paper_boat')}",
        f"three folds of seven in {percent('paper.step_3')}",
        f"shuffled codes {percent('paper.step_3', shuffled)}, random ones {percent('paper.step_3', random)}",
        f"build {built()} of the block figures, towers {tower}, horses {horse}, persons {person}",
        f"the real video's codes {built(real)}, shuffled ones {built(shuffled)}, random ones {built(random)}",
        f"raise its loss by {percent('denoise.rise_tokens', name='train_dldm')}",
        f"{own:.2f} dB over moving pixels, {figure('warmup_dldm', 'render.psnr'):.2f} dB",
    ):
        assert words in text
    assert figure("evaluate", f"{shuffled}paper.step_7") == 0, "none"


STATE = (ROOT / "docs" / "state.md").read_text(encoding="utf-8")
TOLD = {  # row of the table of figures -> what the keys of its metrics begin with; intervals, in brackets, are left out
    "paper steps 1 / 2 / 3 / 4 / 7, strict": "",
    "of shuffled codes, strict": "controls.shuffled_codes.",
    "of random codes, strict": "controls.random_codes.",
    "of the real video's codes, strict": "controls.ground_truth_codes.",
}


@pytest.mark.parametrize("title", TOLD)
def test_table_of_the_state(title):
    table = STATE.split("## Figures of the committed run")[1]
    line = next(line for line in table.splitlines() if line.startswith(f"| {title} |"))
    said = re.findall(r"[\d.]+", re.sub(r"\(.*?\)", "", line.split("|")[2]))
    assert said == [f"{figure('evaluate', f'{TOLD[title]}paper.step_{k}'):.2f}" for k in (1, 2, 3, 4, 7)]


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
