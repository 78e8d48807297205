"""One training step of the true paper configuration on paper: `python -m benchmarks.plan > docs/plan_paper.md`.

Parameters, FLOPs and what a step must keep, by part, from the models themselves on fake tensors: nothing is allocated,
no figure is assumed but those that the table names as such. As the stage computes: weights in float32, autocast to
bfloat16. Takes a minute and 1 GiB.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import vw2.torchvision_ops  # noqa: F401  (must come before diffusers)

import torch
import typer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from stages.preset import laid, read
from vw2.console import run
from vw2.models import attend
from vw2.models.backends import true_cosmos
from vw2.models.dldm import DLDM
from vw2.models.dldm_config import DLDMConfig
from vw2.models.port import VideoVAE
from vw2.params import build

ROOT = Path(__file__).parents[1]
PRESET = "paper"
GIB, WEIGHT, STATES = 2**30, 4, 8  # bytes of a parameter, and of AdamW's two moments


def values_of(preset: str) -> dict:
    """All parameters of a preset, over the mini's."""
    return laid(read("mini", ROOT / "presets"), read(preset, ROOT / "presets"))


def config_of(values: dict) -> DLDMConfig:
    """The dLDM of some parameters, for their clips."""
    return build(DLDMConfig, values["dldm"], "dldm").for_clips(values["clip"]["frames"])


TEXT = """\
# One joint step of the paper's configuration, planned

Made by `python -m benchmarks.plan` on fake tensors, sizes from presets/{preset}.yaml. One clip of {frames} frames,
{height}x{width}; LDM at {small} (release) with {view} queries; block-causal VDM of Cosmos-Predict2 2B; control branch
of {copied} blocks (release). Memory in GiB. Weights in float32, computed under autocast to bfloat16, as the stage does.
Kept: what autograd holds for the backward pass of one clip, bfloat16 copies of weights among it, with fused attention
and norms in float32 as on GPUs. Checkpointed: every block of VDM and control branch is computed again in the backward
pass, one at a time, so that the input of each is kept, what all of them share and, in the VDM's row, what one block
holds while it is computed again ({block} GiB).

{rows}

- Weights, gradients and AdamW: {states} GiB on one GPU; with one clip {alone} GiB, checkpointed {alone_less} GiB.
  Sharded over 8 GPUs (FSDP) with a clip on each: {shared} GiB each, checkpointed {shared_less} GiB.
  Not in it: the passing tensors of one layer, the VAE's among them, what the libraries reserve, and, checkpointed, the
  copies in bfloat16 of the blocks' weights, which autocast keeps until the forward pass has ended.
- A batch goes through the model in micro-batches (`micro_batch`; the presets: a clip at a time), so that it needs the
  memory of one clip; several GPUs share it (`torchrun --nproc-per-node 8 -m stages.train_dldm`), each with the whole
  model. FSDP is open.
- A clip costs {clip} TFLOP checkpointed, {plain} without. A step of {batch} clips (table 4) is {step} PFLOP;
  {steps:,} steps take {hours} GPU hours at an assumed {tflops} TFLOP/s (`--tflops`)."""


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
    """Bytes that autograd keeps for the backward pass, each storage once, those `known` not counted.

    Args: known: modules, whose parameters and buffers are meant, and tensors.
    """

    def __init__(self, *known: nn.Module | Tensor):
        self.known = {id_of(x) for each in known for x in ([each] if isinstance(each, Tensor) else weights(each))}
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


def weights(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


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
    kept_checkpointed: int = 0  # the same where every transformer block is computed again, and one of them is
    again: float = 0.0  # FLOPs of computing them again
    block: int = 0  # bytes of that one

    @property
    def states(self) -> int:
        """Bytes of weights and, where trained, their gradients and AdamW's moments."""
        return self.parameters * (WEIGHT + (WEIGHT + STATES) * self.trained)


def size(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def measure(step: Callable[[], Tensor], *known: nn.Module | Tensor) -> tuple[float, float, int]:
    """FLOPs forward, FLOPs backward, bytes kept beside `known`, of a step that ends in one tensor."""
    with FlopCounterMode(display=False) as forward:
        out, kept = holding(step, *known)
    with FlopCounterMode(display=False) as backward:
        out.float().sum().backward()
    return forward.get_total_flops(), backward.get_total_flops(), kept


def holding(step: Callable[[], Tensor], *known: nn.Module | Tensor) -> tuple[Tensor, int]:
    """What a step ends in, and the bytes that are kept for its backward pass beside `known`."""
    with Fused(), Kept(*known) as kept:
        out = step()
    return out, kept.total


computing = torch.autocast("cpu", torch.bfloat16)  # around a function: as the stage computes it


def ldm_part(dldm: DLDM, frames: int) -> Part:
    """Encoder, queries, FSQ, coarse decoder and projection, with reconstruction and denoising loss."""

    @computing
    def step() -> Tensor:
        video = torch.empty(1, 3, frames, *dldm.config.sides)
        codes = dldm.ldm.quantise(dldm.ldm.features(video))[0]
        drawing = dldm.draw(video[:, :, :1], codes)
        return dldm.ldm.loss(drawing.over(video[:, :, :1]), video) + dldm.tokens(codes).float().sum()

    forward, backward, kept = measure(step, dldm.ldm, dldm.projection)
    return Part("LDM and projection", size(dldm.ldm, dldm.projection), True, forward, backward, kept, kept)


def block_of(vdm: nn.Module, args: tuple[Tensor, ...]) -> tuple[float, int, int]:
    """FLOPs forward of the VDM's first block, bytes that it keeps beside what all blocks are given, bytes of the
    rotary embeddings among that.

    Args: args: of the VDM's `begin`.
    """
    hidden, run_block = computing(vdm.begin)(*args)
    hidden = hidden.detach().requires_grad_()
    given = []  # context, times and rotary embeddings: there is one of each for all blocks
    run_block(lambda *each: given.extend(each) or hidden, hidden)
    pairs = [x for each in given if isinstance(each, tuple) for x in each]
    alone = [each for each in given if isinstance(each, Tensor)]
    forward, _, kept = measure(computing(lambda: run_block(vdm.blocks[0], hidden)), vdm, *alone, *pairs)
    return forward, kept, sum({id_of(x): x.untyped_storage().nbytes() for x in pairs}.values())


def vdm_parts(dldm: DLDM, latents: tuple[int, int, int, int]) -> tuple[Part, Part]:
    """VDM and control branch. `latents`: their C, L, h and w.

    Checkpointed, both rows have the inputs of their blocks; the VDM's also has the one block that is computed again at
    a time, as its backward pass comes first and the branch keeps its own meanwhile.
    """
    vdm, branch, (channels, frames, *sides) = dldm.vdm, dldm.control, latents
    noisy, time, first = torch.empty(1, *latents), torch.empty(1), torch.empty(1, channels, 1, *sides)
    tokens = torch.empty(1, (frames - 1) * dldm.config.queries, vdm.context, requires_grad=True)
    args = (noisy, time, first, tokens)
    vdm.transformer.disable_gradient_checkpointing()
    once, block, rope = block_of(vdm, args)
    with torch.no_grad():
        control = computing(branch)(vdm, *args, noisy)
    told = [each if each is None else each.detach().requires_grad_() for each in control]
    residuals = lambda: sum(each.sum() for each in branch(vdm, *args, noisy) if each is not None)  # noqa: E731
    parts = []
    for name, module, blocks, again, step in (
        ("VDM", vdm, vdm.blocks, block, lambda: vdm(*args, told)),
        ("control branch", branch, branch.blocks, 0, residuals),
    ):
        vdm.transformer.disable_gradient_checkpointing()
        forward, backward, kept = measure(computing(step), vdm, branch)
        vdm.transformer.enable_gradient_checkpointing()
        # a pair of tensors is held by `checkpoint` as it is, unseen
        less = holding(computing(step), vdm, branch)[1] + rope + again
        parts.append(Part(name, size(module), True, forward, backward, kept, less, len(blocks) * once, again))
    return tuple(parts)


def vae_part(vae: VideoVAE, frames: int, height: int, width: int) -> Part:
    """The frozen VAE encodes the clip and the coarse video."""
    with torch.no_grad(), FlopCounterMode(display=False) as count:
        computing(vae.encode)(torch.empty(1, 3, frames, height, width))
    return Part("VAE (frozen)", size(vae), False, 2 * count.get_total_flops())


def gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size else "-"


def tera(flops: float) -> str:
    return f"{flops / 1e12:,.1f}" if flops else "-"


def report(parts: list[Part], values: dict, tflops: float) -> str:
    """The table in Markdown, with what follows from it; `values`: the parameters that were planned with."""
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
    cost = total("forward") + total("backward") + total("again")
    config, clip, optim = config_of(values), values["clip"], values["train_dldm"]["optim"]
    batch, steps = optim["batch"], optim["steps"]
    return TEXT.format(
        preset=PRESET,
        **{key: clip[key] for key in ("frames", "height", "width")},
        small="x".join(map(str, config.sides)),
        view=config.causal.view,
        copied=len(config.control.numbers),
        block=gib(total("block")),
        batch=batch,
        steps=steps,
        rows="\n".join([line(head), line(["---"] + ["---:"] * (len(head) - 1)), *map(line, rows)]),
        states=gib(states),
        alone=gib(states + kept),
        alone_less=gib(states + less),
        shared=gib(states / 8 + kept),
        shared_less=gib(states / 8 + less),
        clip=tera(cost),
        plain=tera(cost - total("again")),
        step=f"{batch * cost / 1e15:,.0f}",
        hours=f"{batch * steps * cost / (tflops * 1e12) / 3600:,.0f}",
        tflops=f"{tflops:g}",
    )


def main(tflops: float = typer.Option(400.0, help="Sustained speed of one GPU, TFLOP/s.")) -> None:
    """Print the plan in Markdown."""
    values = values_of(PRESET)
    config, sizes = config_of(values), [values["clip"][key] for key in ("frames", "height", "width")]
    with FakeTensorMode(allow_non_fake_inputs=True):
        prior = true_cosmos(config.backend)
        dldm, (frames, *sides) = DLDM(config, prior), sizes
        latents = prior.vae.latent, 1 + (frames - 1) // config.stride, *(side // prior.vae.side for side in sides)
        parts = [ldm_part(dldm, frames), *vdm_parts(dldm, latents), vae_part(prior.vae, *sizes)]
    print(report(parts, values, tflops))


if __name__ == "__main__":
    run(main)
