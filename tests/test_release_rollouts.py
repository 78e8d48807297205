"""How the release rolls out, as parameters: guidance against given tokens, chains of their own, one noise for all."""

import pytest
import torch
from safetensors.torch import save_file
from test_rollout import make_row, videos_of
from tiny_models import LATENT, SIDE, STEPS, clip, draw, tiny_config, tiny_dldm, tiny_prior, wake

from vw2.console import UserError
from vw2.models.backends import BackendConfig
from vw2.models.begin import read_tokens
from vw2.models.cosmos import CosmosConfig, CosmosVDM
from vw2.models.dldm import DLDM
from vw2.models.flow import sample
from vw2.models.prior import Prior
from vw2.models.renderer import DLDMRenderer, LDMRenderer
from vw2.rollout import render_batch
from vw2.training.compute import generator

FULL = {"self_attention": "full", "cross_attention": "full"}
ROOM, WIDTH = 12, 8  # context tokens of the tiny VDM below


def start(seed: int = 3) -> tuple[torch.Tensor, ...]:
    """Code indices and start noise of two clips."""
    index = torch.randint(0, 1000, (2, STEPS, 2), generator=generator(seed))
    return index, draw(2, LATENT, STEPS + 1, 4, 4, seed=4)


def filled(**changes) -> tuple[DLDM, Prior]:
    """A dLDM whose VDM's context is filled up with zeros, as the release's is."""
    prior = tiny_prior("velocity")
    torch.manual_seed(3)
    prior.vdm = CosmosVDM(CosmosConfig(LATENT, 2, 12, 2, 4, WIDTH, (8, 16, 16), tokens=ROOM)).eval()
    torch.nn.init.normal_(prior.vdm.transformer.proj_out.weight, std=0.2)
    backend = BackendConfig(kind="cosmos", weights="folder", tokens=ROOM)
    return wake(DLDM(tiny_config(backend=backend, **FULL, **changes), prior).eval(), 2), prior


# ---------------------------------------------------------------- guidance against given tokens


@torch.no_grad()
def test_guidance_goes_away_from_given_tokens(tmp_path):
    dldm, prior = filled(guidance=3.0, guidance_against="negative.safetensors")
    negative = draw(5, WIDTH, seed=9)
    save_file({"negative": negative}, tmp_path / "negative.safetensors")
    dldm.against.tokens.copy_(read_tokens(tmp_path / "negative.safetensors", ROOM, WIDTH))
    frame, (index, noise) = clip(frames=1), start()
    found = dldm.render(prior.vae, frame, index, noise)
    first, codes = prior.vae.encode(frame), dldm.ldm.fsq.to_codes(index)
    hint = prior.vae.encode(dldm.ldm.coarse(frame, index)) - first
    against = negative.expand(2, -1, -1)  # the VDM fills them up itself

    def velocity(noisy, time):
        told, other = (dldm.velocity_told(noisy, time, first, each, hint) for each in (dldm.tokens(codes), against))
        return 4 * told - 3 * other

    wanted = prior.vae.decode(sample(velocity, noise, first, dldm.config.sampling_steps, dldm.config.sampling_shift))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    plain, _ = filled(guidance=3.0)
    assert (plain.render(prior.vae, frame, index, noise) - found).abs().max() > 1e-3, "not what no codes give"


@torch.no_grad()
def test_zeros_are_as_no_codes():
    (zeros, prior), (none, _) = filled(guidance=3.0, guidance_against="any"), filled(guidance=3.0)
    both = [dldm.render(prior.vae, clip(frames=1), *start()) for dldm in (zeros, none)]
    torch.testing.assert_close(*both, atol=1e-5, rtol=0)
    kept = [{key for key in dldm.state_dict() if "against" in key} for dldm in (zeros, none)]
    assert kept == [{"against.tokens"}, set()], "kept with the weights"


@pytest.mark.parametrize("shape", [(ROOM + 1, WIDTH), (3, WIDTH + 1), (0, WIDTH), (3, 2, WIDTH)])
def test_tokens_that_do_not_fit_are_refused(shape, tmp_path):
    save_file({"negative": torch.zeros(shape)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=f"expected one tensor of 1 to {ROOM} tokens by {WIDTH} numbers, got 1"):
        read_tokens(tmp_path / "a.safetensors", ROOM, WIDTH)


def test_files_that_are_no_tokens_are_refused(tmp_path):
    save_file({"one": torch.zeros(3, WIDTH), "two": torch.zeros(3, WIDTH)}, tmp_path / "two.safetensors")
    with pytest.raises(UserError, match="expected one tensor .* got 2"):
        read_tokens(tmp_path / "two.safetensors", ROOM, WIDTH)
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    for name in ("bad", "missing"):
        with pytest.raises(UserError, match=f"{name}.safetensors could not be read .* dldm.guidance_against"):
            read_tokens(tmp_path / f"{name}.safetensors", ROOM, WIDTH)
    with pytest.raises(ValueError, match="dldm.guidance_against goes with dldm.backend.tokens"):
        tiny_config(guidance_against="negative.safetensors", guidance=1.0)
    with pytest.raises(ValueError, match="guidance_against is negative.safetensors but dldm.guidance is 0"):
        tiny_config(guidance_against="negative.safetensors")


# ---------------------------------------------------------------- chains


@torch.no_grad()
@pytest.mark.parametrize("chain", ["drawn", "own"])
def test_what_the_coarse_decoder_goes_on_from(chain):
    dldm, prior = tiny_dldm(chain=chain)
    renderer, row = DLDMRenderer(dldm, prior).eval(), make_row("a", 3)
    seen, coarse = [], dldm.ldm.coarse
    dldm.ldm.coarse = lambda frame, *given: seen.append(frame) or coarse(frame, *given)
    video = torch.from_numpy(videos_of(renderer, [row])[0]).permute(3, 0, 1, 2)[None] / 127.5 - 1
    dldm.ldm.coarse = coarse
    codes, frame = torch.from_numpy(row.codes), seen[0]
    assert torch.allclose(frame, video[:, :, :1], atol=1e-6) and len(seen) == 3
    for clip_number in (1, 2):
        if chain == "own":
            small = dldm.ldm.shrink(frame)
            frame = dldm.ldm.drawing(small, codes[clip_number - 1 : clip_number]).over(small)[:, :, -1:]
            assert torch.equal(seen[clip_number], frame), "its own last frame, at its own size, not clamped"
        else:
            drawn = video[:, :, 4 * STEPS * clip_number][:, :, None]
            torch.testing.assert_close(seen[clip_number], drawn, atol=1 / 255, rtol=0)


@torch.no_grad()
def test_the_vdm_goes_on_from_its_own_frame_either_way():
    dldm, prior = tiny_dldm(chain="own")
    first, other, (index, noise) = clip(frames=1), clip(frames=1, seed=8), start()
    video = dldm.render(prior.vae, first, index, noise, other)
    assert torch.equal(video[:, :, 0], dldm.render(prior.vae, first, index, noise)[:, :, 0])
    hints, sees = [], dldm.sees
    dldm.sees = lambda vae, coarse, *rest: hints.append(coarse) or sees(vae, coarse, *rest)
    dldm.render(prior.vae, first, index, noise, other)
    torch.testing.assert_close(hints[0], dldm.ldm.coarse(other, index))
    dldm.render(prior.vae, first, index, noise, dldm.ldm.shrink(other))
    assert hints[1].shape == hints[0].shape, "enlarged to what the VDM draws"


def test_a_plain_ldm_has_one_chain():
    renderer = LDMRenderer(tiny_dldm()[0].ldm)
    video, (index, _) = clip(), start()
    assert torch.equal(renderer.end(video, video[:, :, :1], index), video[:, :, -1:])


# ---------------------------------------------------------------- noise


def test_one_noise_for_every_clip_of_every_video():
    dldm, prior = tiny_dldm()
    renderer, asked = DLDMRenderer(dldm, prior).eval(), []
    render = renderer.render
    renderer.render = lambda frame, index, noise, begun: asked.append(noise) or render(frame, index, noise, begun)
    rows = [make_row("a", 2), make_row("b", 1, (1,))]
    assert make_row("a", 2).first.shape == (SIDE, SIDE, 3)
    render_batch(renderer, rows, 0, same_noise=True)
    drawn = [noise for batch in asked for noise in batch]
    assert len(drawn) == 3 and all(torch.equal(noise, drawn[0]) for noise in drawn)
    asked.clear()
    render_batch(renderer, rows, 1, same_noise=True)
    assert not torch.equal(asked[0][0], drawn[0]), "another seed, another noise"
    asked.clear()
    render_batch(renderer, rows, 0)
    drawn = [noise for batch in asked for noise in batch]
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
