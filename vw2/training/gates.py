"""What a run must reach to go on; VideoWorld 2 needs live codes that are listened to, the thresholds are our choice."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import log2
from pathlib import Path

from vw2.console import UserError
from vw2.scratch import lasting


@dataclass(frozen=True)
class GatesConfig:
    """Group `gates` of params.yaml."""

    entropy_share: float = 0.5  # least entropy of a code, as a share of log2(codebook, or codes seen if fewer)
    step_entropy_share: float = 0.25  # the same for the codes of the poorest step
    digit_entropy_share: float = 0.1  # least entropy of the poorest digit of a query, as a share of log2(levels)
    dead_digits: int = 0  # most digits of queries with a single level in use
    used_share: float = 0.1  # least share in use of the codebook, or of as many codes as were seen
    motion_share: float = 0.25  # least motion energy of the coarse video, as a share of the real one's
    denoise_margin: float = 0.0  # what the denoising loss must rise by, as a share, if clips get others' codes
    token_margin: float | None = None  # the same with the coarse video left alone: what the tokens say; None = open
    margin_db: float = 0.5  # least PSNR advantage of a clip's own codes over another one's, moving pixels
    enabled: bool = True
    every: int | None = None  # steps after which training looks at the codes; None: at its end alone

    def __post_init__(self):
        if self.every is not None and self.every < 1:
            raise ValueError(f"gates.every must be at least 1 or null, got {self.every}; raise it")
        for key in ("entropy_share", "step_entropy_share", "digit_entropy_share", "used_share"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"gates.{key} must lie in [0, 1], got {getattr(self, key)}; change it")
        if self.dead_digits < 0 or self.motion_share < 0:
            got = f"{self.dead_digits} and {self.motion_share}"
            raise ValueError(f"gates.dead_digits and gates.motion_share must be at least 0, got {got}; raise them")


def check_gates(
    figures: dict, gates: GatesConfig, codebook: int, seen: tuple[int, int, int], plot: Path, sheet: Path
) -> None:
    """Stop a run whose codes are dead or not listened to, or whose coarse video stands still.

    Args:
        figures: dotted key -> number or {"value", ...}; a gate whose figure is not there (a stage without VDM) is open.
        codebook: size.
        seen: clips, steps K and queries N of the codes that the figures are of; of few codes not all can be in use.
        plot: picture of the entropies (vw2.evaluation.health).
        sheet: picture of rendered clips.
    Raises: UserError naming the first broken gate and the picture to look at.
    """
    if gates.enabled and any(broken_gates(figures, gates, codebook, seen, plot, sheet)):
        raise UserError(next(broken_gates(figures, gates, codebook, seen, lasting(plot), lasting(sheet))))


def broken_gates(
    figures: dict, gates: GatesConfig, codebook: int, seen: tuple[int, int, int], plot: Path, sheet: Path
) -> Iterator[str]:
    """A sentence for every broken gate."""
    clips, steps, queries = seen
    usable = min(codebook, clips * steps * queries)
    bits, step_bits = log2(usable), log2(min(codebook, clips * queries))
    if not (found := _value(figures, "codes.entropy_bits")) >= (
        need := gates.entropy_share * bits
    ):  # nan is broken too
        yield (
            f"the codes died: {found:.2f} bits of entropy, at least {need:.2f} expected (gates.entropy_share); "
            f"see {plot}, train longer or lower the learning rate of the encoder"
        )
    if not (found := _value(figures, "codes.used_fraction") * codebook / usable) >= gates.used_share:
        yield (
            f"the codes died: {found:.1%} of {usable:,} usable codes in use, at least {gates.used_share:.0%} expected "
            f"(gates.used_share); see {plot}, lower dldm.codebook or train longer"
        )
    if not (found := _value(figures, "codes.dead_digits", 0)) <= gates.dead_digits:
        yield (
            f"the codes died: digits with a single level in use: {found}, at most {gates.dead_digits} expected "
            f"(gates.dead_digits); see {plot}, lower dldm.codebook or train longer"
        )
    k, found = _least(figures, "codes.step_entropy_bits.k")
    if not found >= (need := gates.step_entropy_share * step_bits):
        yield (
            f"the codes of step {k} died: {found:.2f} bits of entropy, at least {need:.2f} expected "
            f"(gates.step_entropy_share); see {plot}, train longer or lower the learning rate of the encoder"
        )
    g, found = _least(figures, "codes.digit_entropy_share.g")
    if not found >= gates.digit_entropy_share:
        yield (
            f"digit {g} of the codes died: {found:.1%} of its entropy in use, at least {gates.digit_entropy_share:.0%} "
            f"expected (gates.digit_entropy_share); see {plot}, train longer or lower dldm.codebook"
        )
    if not (found := _value(figures, "coarse.motion_share", 1.0)) >= gates.motion_share:
        yield (
            f"the coarse decoder stands still: {found:.1%} of the real motion, at least {gates.motion_share:.0%} "
            f"expected (gates.motion_share); see {sheet}, train longer or raise dldm.pixel_motion_weight"
        )
    if (rise := _value(figures, "denoise.rise")) is not None and not rise > gates.denoise_margin:
        yield (
            f"the codes are ignored: another clip's codes raise the denoising loss by {rise:.2%}, "
            f"more than {gates.denoise_margin:.2%} expected (gates.denoise_margin); see {plot} and {sheet}, train "
            "longer or raise train_dldm.listen_steps"
        )
    told = _value(figures, "denoise.rise_tokens")
    if None not in (told, gates.token_margin) and not told > gates.token_margin:
        yield (
            f"the VDM ignores the codes: other codes beside the same coarse video raise its loss by {told:.2%}, more "
            f"than {gates.token_margin:.2%} expected (gates.token_margin); see {sheet}, begin with a VDM that reads "
            "codes (pretrain_vdm.use; not dldm.vdm.train random), train longer, or let it go on with null"
        )
    if "render.psnr_other_codes" in figures:
        margin = _value(figures, "render.psnr") - _value(figures, "render.psnr_other_codes")
        if not margin >= gates.margin_db:
            yield (
                f"the codes are not listened to: a clip's own codes render it only {margin:.2f} dB better than another "
                f"clip's, at least {gates.margin_db:g} expected (gates.margin_db); see {sheet}, train longer"
            )


def _value(figures: dict, key: str, absent: float | None = None) -> float | None:
    found = figures.get(key, absent)
    return found["value"] if isinstance(found, dict) else found


def _least(figures: dict, prefix: str) -> tuple[str, float]:
    """What follows the prefix in the key of the smallest figure, and that figure; ("", inf) without any."""
    found = [(_value(figures, key), key.removeprefix(prefix)) for key in figures if key.startswith(prefix)]
    value, name = min(found, default=(float("inf"), ""))
    return name, value
