"""One training step of the true paper configuration on paper: `python -m benchmarks.plan > docs/plan_paper.md`.

Parameters, FLOPs and what a step must keep, by part, from the models themselves on fake tensors: nothing is allocated,
no figure is assumed but those that the table names as such. As the stage computes: weights in float32, autocast to
bfloat16. Takes two minutes and 1 GiB.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import vw2.torchvision_ops  # noqa: F401  (must come before diffusers)

import torch
import typer
from diffusers import AutoencoderKLWan
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from vw2.console import run
from vw2.models import attend
from vw2.models.causal import CausalConfig
from vw2.models.control import ControlBranch, ControlConfig
from vw2.models.cosmos import CosmosConfig, CosmosVDM
from vw2.models.ldm import LDM, LDMConfig
from vw2.models.projection import Projection, ProjectionConfig
from vw2.models.wan_vae import WanVAE
from vw2.params import build
from vw2.patch import parse, patch

FRAMES, HEIGHT, WIDTH = 93, 480, 832  # the VDM's clip
SMALL = (240, 416)  # the LDM's (release)
ROOT = Path(__file__).parents[1]
BATCH, STEPS = 128, 100_000  # VideoWorld 2, table 4
PRESET = "paper"
GIB, WEIGHT, STATES = 2**30, 4, 8  # bytes of a parameter, and of AdamW's two moments


def values_of(preset: str) -> dict:
    """All parameters of a preset, over the committed params.yaml."""
    overrides = parse((ROOT / "presets" / f"{preset}.yaml").read_text(encoding="utf-8"), preset)
    return parse(patch((ROOT / "params.yaml").read_text(encoding="utf-8"), overrides, preset)[0], preset)


def control_of(preset: str) -> ControlConfig:
    """The control branch of a preset."""
    return build(ControlConfig, values_of(preset)["dldm"]["control"], "dldm.control")


CONTROL = control_of(PRESET)
COPIED = len(CONTROL.numbers)
TEXT = f"""\
# One joint step of the paper's configuration, planned

Made by `python -m benchmarks.plan` on fake tensors. One clip of {FRAMES} frames, {HEIGHT}x{WIDTH}; LDM at
{SMALL[0]}x{SMALL[1]} (release) with prefix queries; block-causal VDM of Cosmos-Predict2 2B; control branch of
{COPIED} blocks (release). Memory in GiB. Weights in float32, computed under autocast to bfloat16, as the stage does.
Kept: what autograd holds for the backward pass of one clip, bfloat16 copies of weights among it, with fused attention
and norms in float32 as on GPUs; checkpointed: every block of VDM and control branch is computed again in the backward
pass.

{{rows}}

- Weights, gradients and AdamW: {{states}} GiB on one GPU; with one clip {{alone}} GiB, checkpointed {{alone_less}} GiB.
  Sharded over 8 GPUs (FSDP) with a clip on each: {{shared}} GiB each, checkpointed {{shared_less}} GiB.
  Not in it: the passing tensors of one layer, the VAE's among them, what the libraries reserve, and, checkpointed, the
  copies in bfloat16 of the blocks' weights, which autocast keeps until the forward pass has ended.
- A batch goes through the model in micro-batches (`micro_batch`; the presets: a clip at a time), so that it needs the
  memory of one clip; several GPUs share it (`torchrun --nproc-per-node 8 -m stages.train_dldm`), each with the whole
  model. FSDP is open.
- A clip costs {{clip}} TFLOP checkpointed, {{plain}} without. A step of {BATCH} clips (table 4) is {{step}} PFLOP;
  {STEPS:,} steps take {{hours}} GPU hours at an assumed {{tflops}} TFLOP/s (`--tflops`)."""


NORMS = ("layer_norm", "group_norm", "rms_norm")  # autocast computes them in float32 on GPUs, on CPUs it does not
single = lambda x: x.float() if isinstance(x, Tensor) else x  # noqa: E731


class Fused(TorchFunctionMode):
    """Attention and norms as GPUs compute them under autocast.

    Attention without a mask keeps queries, keys, values and output in bfloat16 but no matrix.
    """

    def __enter__(self):
        self.most, attend.MOST = attend.MOST, 0  # a CPU's own way is not a GPU's
        return super().__enter__()

    def __exit__(self, *error):
        attend.MOST = self.most
        return super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention and len(args) == 3 and kwargs.get("attn_mask") is None:
            args = [x.bfloat16() for x in args] if torch.is_autocast_enabled("cpu") else args
            return torch.ops.aten._scaled_dot_product_flash_attention(*args)[0]
        if torch.is_autocast_enabled("cpu") and getattr(func, "__name__", "") in NORMS:
            args, kwargs = map(single, args), {key: single(value) for key, value in kwargs.items()}
        return func(*args, **kwargs)


class Kept:
    """Bytes that autograd keeps for the backward pass, each storage once, parameters not counted."""

    def __init__(self, *modules: nn.Module):
        self.known = {id_of(p) for module in modules for p in (*module.parameters(), *module.buffers())}
        self.sizes: dict[int, int] = {}
        self.alive = []  # so that no storage is freed and its address given to another

    def __enter__(self):
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda x: x)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)

    def pack(self, x: Tensor) -> Tensor:
        if id_of(x) not in self.known:
            self.sizes[id_of(x)] = x.untyped_storage().nbytes()
            self.alive.append(x)
        return x

    @property
    def total(self) -> int:
        return sum(self.sizes.values())


def id_of(x: Tensor) -> int:
    return x.untyped_storage()._cdata


@dataclass
class Part:
    """A row of the table."""

    name: str
    parameters: int
    trained: bool
    forward: float  # FLOPs of one clip
    backward: float = 0.0
    kept: int = 0  # bytes for the backward pass of one clip
    kept_checkpointed: int = 0  # the same where every transformer block is computed again
    again: float = 0.0  # FLOPs of computing them again

    @property
    def states(self) -> int:
        """Bytes of weights and, where trained, their gradients and AdamW's moments."""
        return self.parameters * (WEIGHT + (WEIGHT + STATES) * self.trained)


def size(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def measure(step: Callable[[], Tensor], *modules: nn.Module) -> tuple[float, float, int]:
    """FLOPs forward, FLOPs backward, bytes kept, of a step that ends in one tensor."""
    with Fused(), Kept(*modules) as kept, FlopCounterMode(display=False) as forward:
        out = step()
    with FlopCounterMode(display=False) as backward:
        out.float().sum().backward()
    return forward.get_total_flops(), backward.get_total_flops(), kept.total


computing = torch.autocast("cpu", torch.bfloat16)  # around a function: as the stage computes it


def ldm_part() -> Part:
    """Encoder, prefix queries, FSQ, coarse decoder and projection, with reconstruction and denoising loss."""
    config = LDMConfig(parts="causal", size=SMALL, causal=CausalConfig(view="prefix", connector=0))
    ldm = LDM(config)
    projection = Projection(ProjectionConfig(), config.queries, len(config.resolved()), CosmosConfig().context)

    @computing
    def step() -> Tensor:
        features = ldm.features(torch.empty(1, 3, FRAMES, *SMALL))
        codes = ldm.quantise(features)[0]
        return ldm.decoder(features[:, :, :1], codes.detach()).video.float().sum() + projection(codes).float().sum()

    forward, backward, kept = measure(step, ldm, projection)
    return Part("LDM and projection", size(ldm, projection), True, forward, backward, kept, kept)


def vdm_parts(control: ControlConfig) -> tuple[Part, Part]:
    """VDM and control branch; block-causal masks by slices."""
    vdm = CosmosVDM(CosmosConfig(tokens=0, attention="causal"))
    branch = ControlBranch(control, vdm)
    vdm.layout.attention = "slices"
    frames, high, wide = 1 + (FRAMES - 1) // 4, HEIGHT // 8, WIDTH // 8
    noisy, time, first = (torch.empty(1, *size) for size in ((16, frames, high, wide), (), (16, 1, high, wide)))
    tokens = torch.empty(1, 4 * (frames - 1), vdm.context, requires_grad=True)
    args = (noisy, time, first, tokens)
    hidden, run_block = computing(vdm.begin)(*args)
    hidden = hidden.detach().requires_grad_()
    once, _, kept_block = measure(computing(lambda: run_block(vdm.blocks[0], hidden)), vdm)
    residuals = lambda: sum(r.sum() for r in branch(vdm, *args, noisy) if r is not None)  # noqa: E731
    length = hidden.untyped_storage().nbytes()
    parts = []
    for name, module, blocks, step in (
        ("VDM", vdm, len(vdm.blocks), lambda: vdm(*args)),
        ("control branch", branch, len(control.numbers), residuals),
    ):
        forward, backward, kept = measure(computing(step), vdm, branch)
        # all blocks but one give way to their inputs
        less = kept - (blocks - 1) * kept_block + (blocks - 1) * length
        parts.append(Part(name, size(module), True, forward, backward, kept, less, blocks * once))
    return tuple(parts)


def vae_part() -> Part:
    """The frozen VAE encodes the clip and the coarse video."""
    vae = WanVAE(AutoencoderKLWan())
    with torch.no_grad(), FlopCounterMode(display=False) as count:
        computing(vae.encode)(torch.empty(1, 3, FRAMES, HEIGHT, WIDTH))
    return Part("VAE (frozen)", size(vae), False, 2 * count.get_total_flops())


def gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size else "-"


def tera(flops: float) -> str:
    return f"{flops / 1e12:,.1f}" if flops else "-"


def report(parts: list[Part], tflops: float) -> str:
    """The table in Markdown, with what follows from it."""
    head = ("part", "parameters", "weights", "gradients", "AdamW", "kept", "kept, checkpointed")
    head += ("forward, TFLOP", "backward, TFLOP")
    rows = [
        [
            part.name,
            f"{part.parameters:,}",
            gib(WEIGHT * part.parameters),
            *(gib(n * part.parameters * part.trained) for n in (WEIGHT, STATES)),
            gib(part.kept),
            gib(part.kept_checkpointed),
            tera(part.forward),
            tera(part.backward),
        ]
        for part in parts
    ]
    everything = sum(part.parameters for part in parts)
    trained = sum(part.parameters for part in parts if part.trained)
    total = lambda key: sum(getattr(part, key) for part in parts)  # noqa: E731
    rows.append(
        ["**all**", f"{everything:,}", gib(WEIGHT * everything), gib(WEIGHT * trained), gib(STATES * trained)]
        + [gib(total("kept")), gib(total("kept_checkpointed")), tera(total("forward")), tera(total("backward"))]
    )
    line = lambda cells: "| " + " | ".join(cells) + " |"  # noqa: E731
    states, kept, less = total("states"), total("kept"), total("kept_checkpointed")
    clip = total("forward") + total("backward") + total("again")
    return TEXT.format(
        rows="\n".join([line(head), line(["---"] + ["---:"] * (len(head) - 1)), *map(line, rows)]),
        states=gib(states),
        alone=gib(states + kept),
        alone_less=gib(states + less),
        shared=gib(states / 8 + kept),
        shared_less=gib(states / 8 + less),
        clip=tera(clip),
        plain=tera(clip - total("again")),
        step=f"{BATCH * clip / 1e15:,.0f}",
        hours=f"{BATCH * STEPS * clip / (tflops * 1e12) / 3600:,.0f}",
        tflops=f"{tflops:g}",
    )


def main(tflops: float = typer.Option(400.0, help="Sustained speed of one GPU, TFLOP/s.")) -> None:
    """Print the plan in Markdown."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        parts = [ldm_part(), *vdm_parts(CONTROL), vae_part()]
    print(report(parts, tflops))


if __name__ == "__main__":
    run(main)
