"""How fast the LDM learns, and what the batched Q-former saves: `python -m benchmarks.dldm`.

Prints tokens per second of forward + backward, and the Q-former's time over all steps at once against a loop that
looks at the frames of one step after the other, measured in turns in the same run; then block slices against a dense
mask in the VDM (benchmarks/attention.py). Half a minute at the default size; figures in docs/speed.md.
True size: --channels 128 --height 240 --width 416 --frames 93 (hours on a CPU, 30 GB).
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
import typer
from torch import Tensor

from benchmarks import attention
from vw2.console import run, table
from vw2.models.causal import CausalConfig
from vw2.models.ldm import LDM, LDMConfig
from vw2.models.qformer import QFormer


def loop(former: QFormer, features: Tensor) -> Tensor:
    """What `former(features)` gives for the prefix view, one step after the other; (B, K, N, C)."""
    return torch.stack([last_step(former, features[:, :, : k + 1]) for k in range(1, features.shape[2])], dim=1)


def last_step(former: QFormer, prefix: Tensor) -> Tensor:
    """The queries of the step that sees all frames of `prefix` (B, C, k + 1, h, w); (B, N, C)."""
    value = prefix.flatten(2).transpose(1, 2)
    key = (prefix + former.places(*prefix.shape[3:])[:, None]).flatten(2).transpose(1, 2)
    x = former.query.expand(len(prefix), -1, -1)
    for layer in former.layers:
        x = layer(x, key, value, None)  # it sees all of the prefix; a mask would cost it time
    return former.norm(x + former.last(2 * x, key, value, None))


def seconds(functions: list[Callable[[], Tensor]], repeats: int) -> list[float]:
    """Median time of forward + backward of each, taken in turns so that a busy machine slows all alike."""
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for function, spent in zip(functions, times, strict=True):
            start = perf_counter()
            function().square().mean().backward()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:  # the first round warms up
                spent.append(perf_counter() - start)
    return [median(each) for each in times]


@dataclass(frozen=True)
class QFormerTimes:
    """Seconds of forward + backward and the largest difference of what comes out."""

    batched: float
    looped: float
    difference: float


def time_qformer(steps: int, side: int, width: int, queries: int, repeats: int, device: str = "cpu") -> QFormerTimes:
    """The prefix Q-former over `steps` + 1 frames of side x side pixels, batched and looped."""
    torch.manual_seed(0)
    former = QFormer(queries, width, layers=2, heads=4, view="prefix").to(device)
    features = torch.randn(1, width, steps + 1, side, side, device=device, requires_grad=True)
    with torch.no_grad():
        difference = (former(features) - loop(former, features)).abs().max().item()
    batched, looped = seconds([lambda: former(features), lambda: loop(former, features)], repeats)
    return QFormerTimes(batched, looped, difference)


def main(
    channels: int = typer.Option(16, help="release: 128"),
    height: int = typer.Option(64, help="pixels, a multiple of 16; release: 240"),
    width: int = typer.Option(64, help="pixels, a multiple of 16; release: 416"),
    frames: int = typer.Option(17, help="1 + 4 m; release: 93"),
    batch: int = typer.Option(1),
    steps: int = typer.Option(24, help="K of the Q-former alone"),
    side: int = typer.Option(16, help="feature pixels of the Q-former alone; release: 15x26"),
    features: int = typer.Option(512, help="width of the Q-former alone (release)"),
    repeats: int = typer.Option(3),
    device: str = typer.Option("cpu"),
) -> None:
    """Measure the LDM: tokens per second, the batched Q-former against a loop; and slices against a dense mask."""
    torch.manual_seed(0)
    causal = CausalConfig(channels=channels, z_channels=2 * channels, connector=8 * channels, view="prefix")
    config = LDMConfig(parts="causal", size=(height, width), causal=causal)
    model = LDM(config).to(device)
    video = torch.rand(batch, 3, frames, height, width, device=device) * 2 - 1

    def reconstruct() -> Tensor:
        features = model.features(video)
        codes = model.quantise(features)[0]
        coarse = model.decoder(features[:, :, :1], codes).video
        return torch.cat([(coarse - video).flatten(), model.tokens(codes).flatten()])

    (spent,) = seconds([reconstruct], repeats)
    pixels = (1 + (frames - 1) // causal.time) * (height // causal.space) * (width // causal.space)
    times = time_qformer(steps, side, features, config.queries, repeats, device)
    rows = {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "threads": torch.get_num_threads(),
        "LDM, ms forward + backward": 1000 * spent,
        "LDM, feature tokens per second": batch * pixels / spent,
        "LDM, codes per second": batch * config.queries * (frames - 1) // causal.time / spent,
        f"Q-former at K = {steps}, C = {features}, all steps at once, ms": 1000 * times.batched,
        f"Q-former at K = {steps}, C = {features}, a loop over steps, ms": 1000 * times.looped,
        "Q-former, loop / batched": times.looped / times.batched,
        "Q-former, largest difference": times.difference,
    }
    table("LDM", rows)
    for name, size in attention.SIZES.items():
        table(f"VDM, {attention.title(name)}", attention.measured(size, repeats))


if __name__ == "__main__":
    run(main)
