"""Block slices against a dense mask, forward and backward: `python -m benchmarks.attention`.

Both take turns in one run, and what counts is the ratio of their least processor times, which other programs on the
machine disturb little.
Rows: attention alone (self-attention over latent frames and cross-attention to code steps) and the whole VDM.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import typer

from benchmarks.turns import least
from vw2.console import run, table
from vw2.models.attention import ATTENTION, Mask, seen_codes, seen_frames
from vw2.models.cosmos import CosmosVDM
from vw2.models.prior import VDMConfig

CODES, LATENT = 4, 48  # N, C


@dataclass(frozen=True)
class Size:
    """A clip of `frames` latent frames of side x side latent pixels, 2 x 2 of them a token."""

    batch: int
    frames: int  # L
    side: int
    heads: int
    head_width: int
    layers: int

    @property
    def per_frame(self) -> int:
        return (self.side // 2) ** 2


SIZES = {
    "mini": Size(batch=16, frames=5, side=8, heads=4, head_width=64, layers=6),  # params.yaml: 80 tokens
    "long": Size(batch=1, frames=24, side=16, heads=4, head_width=64, layers=2),  # T = 93 at 128 pixels: 1,536 tokens
}


Work = Callable[[], list[torch.Tensor]]  # one forward and backward: results and gradients


def attend(way: str, size: Size, mask: Mask, keys: int) -> Work:
    """One masked attention."""
    rng = torch.Generator().manual_seed(0)
    numbers = (size.per_frame * size.frames, keys, keys)
    shapes = [(size.batch, size.heads, n, size.head_width) for n in numbers]
    given = [torch.randn(shape, generator=rng).requires_grad_() for shape in shapes]

    def once() -> list[torch.Tensor]:
        for x in given:
            x.grad = None
        result = ATTENTION[way](*given, mask)
        result.sum().backward()
        return [result.detach(), *(x.grad for x in given)]

    return once


def denoise(way: str, size: Size) -> Work:
    """The VDM; its velocity, and the gradient that reaches the codes."""
    torch.manual_seed(0)
    config = VDMConfig(size.heads, size.head_width, size.layers, prediction="velocity")
    vdm = CosmosVDM(config.cosmos(LATENT))
    vdm.layout.attention = way
    noisy = torch.randn(size.batch, LATENT, size.frames, size.side, size.side)
    context = torch.randn(size.batch, (size.frames - 1) * CODES, config.context, requires_grad=True)
    level = torch.full((size.batch,), 0.7)

    def once() -> list[torch.Tensor]:
        vdm.zero_grad()
        context.grad = None
        velocity = vdm(noisy, level, noisy[:, :, :1], context)
        velocity.square().mean().backward()
        return [velocity.detach(), context.grad]

    return once


def compare(work: dict[str, Work], rounds: int) -> tuple[dict[str, float], float]:
    """Least processor seconds of each, and the largest difference of their results as a share of the largest number."""
    results = {name: once() for name, once in work.items()}
    best = least(work, rounds)
    pairs = zip(results["dense"], results["slices"], strict=True)
    return best, max(float((one - two).abs().max() / one.abs().max()) for one, two in pairs)


def measured(size: Size, rounds: int) -> dict[str, str]:
    """What `compare` found, in words, for attention alone and for the whole VDM."""
    tokens, codes = size.per_frame * size.frames, (size.frames - 1) * CODES
    masks = {
        "self-attention": (seen_frames(0, size.frames, size.per_frame), tokens),
        "cross-attention": (seen_codes(0, size.frames, size.per_frame, codes), 1 + codes),
    }
    works = {key: {way: attend(way, size, *mask) for way in ("dense", "slices")} for key, mask in masks.items()}
    works["VDM"] = {way: denoise(way, size) for way in ("dense", "slices")}
    rows = {}
    for part, work in works.items():
        best, difference = compare(work, rounds)
        rows[part] = (
            f"dense / slices {best['dense'] / best['slices']:.2f}  (dense {1000 * best['dense']:.1f} ms, "
            f"slices {1000 * best['slices']:.1f} ms, {size.batch * tokens / best['slices']:.0f} tokens/s, "
            f"largest difference {difference:.1e} of the largest number)"
        )
    return rows


def title(name: str) -> str:
    size = SIZES[name]
    return f"{name}: {size.batch} clips of {size.frames} x {size.per_frame} tokens"


def main(
    sizes: list[str] = typer.Option(list(SIZES), "--size", help=f"Which sizes: {', '.join(SIZES)}."),
    rounds: int = typer.Option(15, min=1, help="Turns of each."),
    threads: int = typer.Option(1, min=1, help="CPU threads."),
) -> None:
    """Slices against a dense mask, forward and backward, as ratios."""
    torch.set_num_threads(threads)
    for name in sizes:
        table(title(name), measured(SIZES[name], rounds))


if __name__ == "__main__":
    run(main)
