"""Causality, bit for bit: what comes later, in pixels, latents or codes, changes nothing that lies before it.

Each test also sees to it that what may change does, so that none holds because nothing is connected.
"""

import pytest
import torch
from tiny_models import (
    FRAMES,
    LATENT,
    SIDE,
    SMALL,
    STEPS,
    clip,
    draw,
    tiny_dldm,
    tiny_ldm,
    tiny_prior,
    wake,
)

from vw2.models.attention import ATTENTION, Layout, frame_mask, seen_codes
from vw2.models.fsq import FSQ
from vw2.models.prior import VAEConfig, VideoVAE
from vw2.models.projection import Projection, ProjectionConfig
from vw2.models.queries import PrefixQueries

SIZE, QUERIES, DIGITS, WIDTH = SMALL["size"], SMALL["queries"], 4, SMALL["width"]
each_frame = pytest.mark.parametrize("frame", range(1, FRAMES))  # the first pixel frame that changes
each_step = pytest.mark.parametrize("step", range(STEPS))  # the first code step that changes, from 0
pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", params=["features", "change"])  # what the queries see
def ldm(request):
    return tiny_ldm(query_view=request.param)


def after(old: torch.Tensor, start: int, dim: int, seed: int = 7) -> torch.Tensor:
    """`old` with other numbers from `start` on along `dim`."""
    new = old.clone()
    part = new.narrow(dim, start, old.shape[dim] - start)
    part.add_(draw(*part.shape, seed=seed))
    return new


def codes_of(seed: int) -> torch.Tensor:
    """(2, K, N, G) codes of the codebook."""
    index = torch.randint(0, 1000, (2, STEPS, QUERIES), generator=torch.Generator().manual_seed(seed))
    return FSQ((8, 5, 5, 5)).to_codes(index)


def other_codes(codes: torch.Tensor, step: int) -> torch.Tensor:
    """Other codes from `step` on."""
    return torch.cat([codes[:, :step], codes_of(99)[:, step:]], dim=1)


# ---------------------------------------------------------------- tokenizer


@each_frame
def test_encoder(ldm, frame):
    video = clip(side=SIZE)
    before, now = ldm.features(video), ldm.features(after(video, frame, 2))
    same = (frame - 1) // 4 + 1  # latent frame l has seen pixel frames up to 4 l
    assert torch.equal(before[:, :, :same], now[:, :, :same])
    assert not torch.equal(before[:, :, same], now[:, :, same])


@each_frame
def test_codes(ldm, frame):
    video = clip(side=SIZE)
    late = after(video, frame, 2)
    before, now = ldm.query(ldm.features(video)), ldm.query(ldm.features(late))
    same = (frame - 1) // 4  # step k (from 1) has seen pixel frames up to 4 k
    assert torch.equal(before[:, :same], now[:, :same]) and not torch.equal(before[:, same], now[:, same])
    index = ldm.encode(video)
    assert torch.equal(index[:, :same], ldm.encode(late)[:, :same])
    assert len(torch.unique(index)) > 1


def test_codes_of_a_step_do_not_depend_on_how_long_the_clip_is(ldm):
    video = clip(side=SIZE)
    # Other shapes make the kernels sum in another order: 1e-6 relative, not to the bit.
    torch.testing.assert_close(
        ldm.query(ldm.features(video[:, :, :5])), ldm.query(ldm.features(video))[:, :1], atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(ldm.features(video[:, :, :1]), ldm.features(video)[:, :, :1], atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("view", ["features", "change"])
def test_prefix_queries_equal_a_loop_over_steps(view):
    torch.manual_seed(0)
    queries = wake(PrefixQueries(2, DIGITS, WIDTH, (SIZE // 4) ** 2, width=16, layers=2, view=view, max_steps=4))
    features = draw(2, WIDTH, 4, SIZE // 4, SIZE // 4)
    together = queries(features)
    for k in range(1, 4):  # step k over the prefix f_0..f_k alone; other shapes, other order of sums
        torch.testing.assert_close(queries(features[:, :, : k + 1])[:, -1], together[:, k - 1], atol=1e-5, rtol=1e-5)


@each_step
def test_coarse_decoder(ldm, step):
    frame, first, codes = clip(frames=1, side=SIZE), draw(2, WIDTH, 1, SIZE // 4, SIZE // 4), codes_of(1)
    before, now = (ldm.decoder(first, each).over(frame) for each in (codes, other_codes(codes, step)))
    same = 4 * step + 1
    assert torch.equal(before[:, :, :same], now[:, :, :same])
    assert not torch.equal(before[:, :, same], now[:, :, same])


@each_step
def test_code_history(ldm, step):
    codes = codes_of(1)
    before, now = ldm.decoder.history(codes), ldm.decoder.history(other_codes(codes, step))
    assert torch.equal(before[:, : step + 1], now[:, : step + 1])
    assert not torch.equal(before[:, step + 1], now[:, step + 1])


# ---------------------------------------------------------------- interplay


@pytest.mark.parametrize("layers", [0, 1, 2])
@each_step
def test_projection(layers, step):
    torch.manual_seed(0)
    projection = wake(Projection(ProjectionConfig(16, layers, 4), QUERIES, DIGITS, 12))
    codes = codes_of(1)
    before, now = projection(codes), projection(other_codes(codes, step))
    same = step * QUERIES
    assert torch.equal(before[:, :same], now[:, :same]) and not torch.equal(before[:, same:], now[:, same:])


def test_masks_by_hand():
    # Three latent frames of two tokens, two steps of one code behind the null token.
    assert frame_mask(3, 2, torch.device("cpu")).int().tolist() == (
        [[1, 1, 0, 0, 0, 0]] * 2 + [[1, 1, 1, 1, 0, 0]] * 2 + [[1] * 6] * 2
    )
    codes_seen = lambda per_frame, codes: seen_codes(0, 3, per_frame, codes).dense(1 + codes).int().tolist()  # noqa: E731
    assert codes_seen(2, 2) == [[1, 0, 0]] * 2 + [[1, 1, 0]] * 2 + [[1, 1, 1]] * 2
    assert codes_seen(1, 4) == [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1] * 5]
    assert codes_seen(1, 0) == [[1]] * 3  # no codes yet: the prior
    with pytest.raises(AssertionError, match="multiple of 2 code tokens for 3 latent frames, got 3"):
        seen_codes(0, 3, 1, 3)


CLIP = 5  # latent frames of the tests below
each_way = pytest.mark.parametrize("way", sorted(ATTENTION))
each_precision = pytest.mark.parametrize("precision", ["float32", "bfloat16"])


@each_way
def test_self_attention_every_way(way):
    layout, tokens = Layout(CLIP, attention=way), 3
    given = [draw(2, 2, CLIP * tokens, 8, seed=seed) for seed in range(3)]
    before = layout.attend_frames(None, *given)
    for frame in range(1, CLIP):
        now = layout.attend_frames(None, *(after(x, frame * tokens, 2) for x in given))
        same = frame * tokens
        assert torch.equal(before[:, :, :same], now[:, :, :same])
        assert not torch.equal(before[:, :, same : same + tokens], now[:, :, same : same + tokens])


@each_way
def test_cross_attention_every_way(way):
    layout, tokens, codes = Layout(CLIP, attention=way), 3, 1 + (CLIP - 1) * QUERIES
    query, *given = (draw(2, 2, n, 8, seed=seed) for seed, n in enumerate((CLIP * tokens, codes, codes)))
    for step in range(CLIP - 1):
        before = layout.attend_codes(query, *given)
        now = layout.attend_codes(query, *(after(x, 1 + step * QUERIES, 2) for x in given))
        same = (step + 1) * tokens  # latent frame t sees the codes of steps <= t, step 0 here being the paper's first
        assert torch.equal(before[:, :, :same], now[:, :, :same])
        assert not torch.equal(before[:, :, same : same + tokens], now[:, :, same : same + tokens])


# ---------------------------------------------------------------- VDM


def vdm_inputs() -> dict[str, torch.Tensor]:
    side = SIDE // 8
    return {
        "noisy": draw(2, LATENT, STEPS + 1, side, side, seed=1),
        "time": torch.tensor([0.3, 0.9]),
        "first": draw(2, LATENT, 1, side, side, seed=2),
    }


@pytest.mark.parametrize("prediction", ["velocity", "change"])
@pytest.mark.parametrize("latent", range(1, STEPS + 1))
def test_vdm_latents(prediction, latent):
    vdm, given = tiny_prior(prediction).vdm, vdm_inputs()
    for context in (None, draw(2, STEPS * QUERIES, 12, seed=3)):
        before = vdm(**given, context=context)
        now = vdm(**given | {"noisy": after(given["noisy"], latent, 2)}, context=context)
        assert torch.equal(before[:, :, :latent], now[:, :, :latent])
        assert not torch.equal(before[:, :, latent], now[:, :, latent])


@each_step
def test_vdm_cross_attention(step):
    vdm, given = tiny_prior().vdm, vdm_inputs()
    context = draw(2, STEPS * QUERIES, 12, seed=3)
    before = vdm(**given, context=context)
    now = vdm(**given, context=after(context, step * QUERIES, 1))
    assert torch.equal(before[:, :, : step + 1], now[:, :, : step + 1])
    assert not torch.equal(before[:, :, step + 1], now[:, :, step + 1])


def test_vdm_does_not_look_at_the_noisy_first_frame():
    # Checked on the velocity prediction: where the clean change is predicted, the given frame's own velocity is noisy
    # minus clean by definition, and nobody reads it.
    vdm, given = tiny_prior("velocity").vdm, vdm_inputs()
    noisy = given["noisy"].clone()
    noisy[:, :, 0] += 1
    assert torch.equal(vdm(**given), vdm(**given | {"noisy": noisy}))
    assert not torch.equal(vdm(**given), vdm(**given | {"first": given["first"] + 1}))


@pytest.mark.parametrize("part", ["codes", "hint", "noisy", "all"])
@each_step
def test_dldm_velocity(part, step):
    dldm, _ = tiny_dldm()
    given, codes = vdm_inputs(), codes_of(1)
    hint = draw(*given["noisy"].shape, seed=5)
    old = {**given, "codes": codes, "hint": hint}
    changed = {
        "codes": other_codes(codes, step),
        "hint": after(hint, step + 1, 2),
        "noisy": after(given["noisy"], step + 1, 2),
    }
    new = old | (changed if part == "all" else {part: changed[part]})
    before, now = dldm.velocity(**old), dldm.velocity(**new)
    assert torch.equal(before[:, :, : step + 1], now[:, :, : step + 1])
    assert not torch.equal(before[:, :, step + 1], now[:, :, step + 1])


@each_way
@each_precision
def test_dldm_velocity_every_way(way, precision):
    dldm, _ = tiny_dldm(attention=way)
    old = {
        "noisy": draw(2, LATENT, CLIP, 4, 4, seed=1),
        "time": torch.rand(2, CLIP, generator=torch.Generator().manual_seed(2)) / 2,  # one of each latent frame
        "first": draw(2, LATENT, 1, 4, 4, seed=2),
        "codes": torch.cat([codes_of(1), codes_of(2)], dim=1),
        "hint": draw(2, LATENT, CLIP, 4, 4, seed=5),
    }

    def velocity(**given):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return dldm.velocity(**given)

    before = velocity(**old)
    for frame in range(1, CLIP):
        times = old["time"] + 0.3 * (torch.arange(CLIP) >= frame)
        changed = {
            "noisy": after(old["noisy"], frame, 2),
            "time": times,
            "codes": after(old["codes"], frame - 1, 1),
            "hint": after(old["hint"], frame, 2),
        }
        for part, new in changed.items():
            now = velocity(**old | {part: new})
            assert torch.equal(before[:, :, :frame], now[:, :, :frame]), part
            assert not torch.equal(before[:, :, frame], now[:, :, frame]), part


@each_step
def test_rendered_frames(step):
    # The whole sampler with the coarse video of the same codes: frames before a step do not know it.
    dldm, prior = tiny_dldm()
    index = torch.randint(0, 1000, (2, STEPS, QUERIES), generator=torch.Generator().manual_seed(3))
    late = index.clone()
    late[:, step:] = (late[:, step:] + 500) % 1000
    first, noise = clip(frames=1), vdm_inputs()["noisy"]
    before, now = (dldm.render(prior.vae, first, each, noise) for each in (index, late))
    same = 4 * step + 1
    assert torch.equal(before[:, :, :same], now[:, :, :same]) and not torch.equal(before[:, :, same:], now[:, :, same:])


# ---------------------------------------------------------------- VAE


def tiny_vae(channels: tuple[int, ...]) -> VideoVAE:
    torch.manual_seed(0)
    vae = VideoVAE(VAEConfig(latent=LATENT, channels=channels)).eval()
    vae.fit([clip(4, seed=9)])
    return wake(vae)


each_vae = pytest.mark.parametrize("channels", [(), (8, 8, 8)], ids=["linear", "network"])


@each_vae
@pytest.mark.parametrize("frame", [1, 4, 5])
def test_vae_encoder(channels, frame):
    vae, video = tiny_vae(channels), clip()
    before, now = vae.encode(video), vae.encode(after(video, frame, 2))
    same = (frame - 1) // 4 + 1
    assert torch.equal(before[:, :, :same], now[:, :, :same]) and not torch.equal(before[:, :, same], now[:, :, same])


@each_vae
def test_vae_first_frame_alone(channels):
    vae, video = tiny_vae(channels), clip()
    whole, alone = vae.encode(video)[:, :, :1], vae.encode(video[:, :, :1])
    if channels:  # convolutions over another number of frames sum in another order
        torch.testing.assert_close(alone, whole, atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(alone, whole)


@each_vae
@pytest.mark.parametrize("latent", [1, 2])
def test_vae_decoder(channels, latent):
    vae, latents = tiny_vae(channels), draw(2, LATENT, 3, 4, 4)
    before, now = vae.expand(latents), vae.expand(after(latents, latent, 2))
    same = 4 * latent - 3
    assert torch.equal(before[:, :, :same], now[:, :, :same]) and not torch.equal(before[:, :, same], now[:, :, same])
