"""Models on a GPU that is not there: fake tensors know on which device they are, but hold no numbers.

What makes a tensor on the CPU and mixes it with those of the model fails here as it would on a machine with a GPU. The
meta device stands for the GPU, since builds of torch for CPUs do not let tensors say that they are on another one.
"""

import numpy as np
import pytest
import torch
from tiny_models import causal_ldm, clip, tiny_batch, tiny_dldm, tiny_ldm, tiny_prior
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from vw2.console import UserError
from vw2.media.colours import ColourConfig, recolour
from vw2.models.classifier import ClassifierConfig, StepClassifier, to_frames
from vw2.models.denoiser import SOLVERS
from vw2.models.dldm import JointBatch
from vw2.models.renderer import DLDMRenderer
from vw2.training import frames
from vw2.training.compute import ComputeConfig, generator, start

GPU = torch.device("meta")


class Machine:
    """A machine with a GPU: `move` brings modules (in place) and tensors there."""

    def __init__(self):
        self.mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())

    def move(self, what):
        if not isinstance(what, nn.Module):
            return FakeTensor(self.mode, what.detach().to("meta"), GPU)
        for part in what.modules():
            for kept in (part._parameters, part._buffers):
                for name, value in kept.items():
                    if value is not None:
                        moved = self.move(value)
                        is_weight = isinstance(value, nn.Parameter)
                        kept[name] = nn.Parameter(moved, value.requires_grad) if is_weight else moved
        return what


@pytest.fixture
def machine():
    return Machine()


def check_gradients(module: nn.Module) -> None:
    found = [p.grad for p in module.parameters() if p.grad is not None]
    assert found and all(each.device == GPU for each in found)


def test_it_refuses_what_a_true_one_would(machine):
    x = machine.move(torch.zeros(2))
    with machine.mode, pytest.raises(RuntimeError, match="device"):
        x + torch.zeros(2)


@pytest.mark.parametrize("make", [tiny_ldm, causal_ldm])
def test_ldm(machine, make):
    ldm, video = machine.move(make()), machine.move(clip())
    with machine.mode:
        loss, _, end = ldm(video, video[:, :, :1])
        loss.backward()
        index = ldm.encode(video)
        assert loss.device == end.device == index.device == ldm.coarse(video[:, :, :1], index).device == GPU
    check_gradients(ldm)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"frame_times": "independent", "sampling_order": "frames", "first_noise": 0.1},
        {"noise_levels": "release", "level_weight": "release", "code_dropout": 0.5, "guidance": 2.0},
    ],
)
def test_dldm(machine, changes, monkeypatch):
    # diffusers' solvers look at numbers, which fake tensors lack
    one_step = lambda velocity, noise, *_: noise - velocity(noise, noise.new_ones(len(noise)))  # noqa: E731
    for name in SOLVERS:
        monkeypatch.setitem(SOLVERS, name, one_step)
    dldm, prior = tiny_dldm(**changes)
    renderer = DLDMRenderer(machine.move(dldm), machine.move(prior))
    batch = tiny_batch(prior)
    batch = JointBatch(machine.move(batch.video), machine.move(batch.first))
    index = machine.move(torch.zeros(2, 2, 2, dtype=torch.int64))
    with machine.mode:
        loss, _, end = dldm.train()(batch, prior.vae, generator(0))
        loss.backward()
        noise = torch.cat([renderer.noise(batch.first[:1], index.shape[1], generator(0)) for _ in index])
        video = renderer.render(batch.first, index, noise)
    assert loss.device == end.device == video.device == GPU
    check_gradients(dldm)


def test_classifier_and_the_vae_before_it(machine, monkeypatch):
    gave = []
    monkeypatch.setattr(frames, "to_uint8", lambda video: gave.append(video) or np.zeros((1, 9, 32, 32, 3), np.uint8))
    vae, model = machine.move(tiny_prior().vae), machine.move(StepClassifier(ClassifierConfig(), ("a", "b")))
    clips = np.zeros((2, 6, 32, 32, 3), np.uint8)
    with machine.mode:
        frames.through_vae(vae, clips, GPU)
        said = model.heads(to_frames(clips[0]).to(GPU))
    assert all(each.device == GPU for each in (*gave, *said)) and gave[0].shape == (2, 3, 9, 32, 32)


def test_colours(machine):
    with machine.mode:
        video = recolour(machine.move(clip()), [[1], [2]], ColourConfig(share=1.0), 0)
    assert video.device == GPU


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process, got 2"):
        start(ComputeConfig(), 0)
