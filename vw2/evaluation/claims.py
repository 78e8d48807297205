"""What the report claims, and beside which figures each claim has to stand. Keys are "stage:dotted.key"."""

from __future__ import annotations

from dataclasses import dataclass

from vw2.evaluation.benchmark import CONTROLS


@dataclass(frozen=True)
class Claim:
    """A figure and what it has to be held against."""

    text: str
    key: str
    unit: str = ""  # share, dB, bits, px, degrees, or "" for a plain number
    beside: tuple[tuple[str, str], ...] = ()  # (name, key)


def _rollouts(text: str, key: str, unit: str = "", first: int = 0) -> Claim:
    """A figure of the rollouts with the same figure of the controls."""
    beside = tuple((name.replace("_", " "), f"evaluate:controls.{name}.{key}") for name in CONTROLS[first:])
    return Claim(text, f"evaluate:{key}", unit, beside)


def _pose(text: str, key: str, unit: str) -> Claim:
    """A figure of the renders of ground-truth codes; real videos show what the classifier itself errs by."""
    found = {name: f"evaluate:controls.{name}.pose.{key}" for name in CONTROLS}
    beside = (("real videos: error of the measurement", found["ground_truth"]), ("copy", found["copy_first_frame"]))
    return Claim(text, found["ground_truth_codes"], unit, beside)


def _render(text: str, prefix: str) -> Claim:
    """PSNR of clips rendered from their own codes, moving pixels."""
    beside = (
        ("codes of another video", f"{prefix}.psnr_other_codes"),
        ("copy", f"{prefix}.psnr_copy"),
        ("coarse video after the warm-up", f"{prefix.replace('train_dldm', 'warmup_dldm')}.psnr"),
    )
    return Claim(text, f"{prefix}.psnr", "dB", beside)


def _probe(text: str, what: str, unit: str = "") -> Claim:
    """What a linear probe reads from a code, after the joint stage and before."""
    beside = (
        ("after warm-up", f"train_dldm:probe.warmup.{what}"),
        ("guessing", f"train_dldm:probe.joint.{what}_chance"),
    )
    return Claim(text, f"train_dldm:probe.joint.{what}", unit, beside)


CLAIMS = (
    _rollouts("Paper folding: first key step done", "paper.step_1", "share"),
    _rollouts("Paper folding: three key steps done in order", "paper.step_3", "share"),
    _rollouts("Paper folding: all seven key steps done in order", "paper.step_7", "share"),
    _rollouts("Blocks: tower built", "blocks.tower", "share"),
    _rollouts("Blocks: horse built", "blocks.horse", "share"),
    _rollouts("Blocks: person built", "blocks.person", "share"),
    _rollouts("Rollouts beside the real videos: PSNR", "quality.psnr", "dB", first=1),
    _rollouts("Rollouts beside the real videos: SSIM", "quality.ssim", first=1),
    _rollouts("Rollouts beside the real videos: LPIPS (lower is better)", "quality.lpips", first=1),
    _rollouts("The same with an untrained backbone (not LPIPS as published)", "quality.lpips_untrained", first=1),
    _render("A clip from its own codes and first frame, no nuisance: PSNR of what moves", "train_dldm:render"),
    _render("The same at the default nuisance", "train_dldm:render_nuisance"),
    _pose("Hand in videos rendered from ground-truth codes: distance (picture 64 px wide)", "hand_px", "px"),
    _pose("Flap in videos rendered from ground-truth codes: error of the fold angle", "angle_degrees", "degrees"),
    Claim(
        "Entropy of a code", "train_dldm:codes.entropy_bits", "bits", (("warm-up", "warmup_dldm:codes.entropy_bits"),)
    ),
    Claim("Codes that the training after the warm-up changed", "train_dldm:codes.changed_fraction", "share"),
    _probe("Action, read from a code by a linear probe", "action", "share"),
    _probe("Appearance, read from a code by a linear probe: R2 (lower is better)", "appearance"),
    Claim(
        "AR transformer: surprise at a code of an unseen video (lower is better)",
        "train_ar:test.bits",
        "bits",
        (("wrong instruction", "train_ar:swapped.bits"), ("code frequencies alone", "train_ar:control.unigram_bits")),
    ),
    Claim(
        "Classifier: frames of unseen appearance named right",
        "train_classifier:accuracy",
        "share",
        (("always the most frequent class", "train_classifier:chance"),),
    ),
)
