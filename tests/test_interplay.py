"""The interplay of codes and VDM: one mask in all its ways to be computed, the cache, per-frame noise, projections.

What may depend on what is in tests/test_causal.py.
"""

import pytest
import torch
from tiny_models import LATENT, SMALL, clip, draw, tiny_batch, tiny_config, tiny_dldm
from torch.nn.attention.flex_attention import create_block_mask

from vw2.console import UserError
from vw2.models.attention import ATTENTION, BLOCK, KVCache, Mask, NoPast, block_mask, seen_codes, seen_frames
from vw2.models.flow import FRAME_TIMES, add_noise, draw_time, flow_loss, independent_times, integrate, noised
from vw2.models.fsq import FSQ
from vw2.training.compute import generator

QUERIES, STEPS = SMALL["queries"], 4  # K = 4: five latent frames
OTHERS = sorted(set(ATTENTION) - {"dense"})
each_other = pytest.mark.parametrize("way", OTHERS)
MASKS = {
    "frames": (seen_frames(0, 5, 4), 20),
    "frames, later": (seen_frames(3, 2, 4), 20),
    "frames, all": (seen_frames(0, 5, 4, "full"), 20),
    "codes": (seen_codes(0, 5, 4, 8), 9),
    "codes, later": (seen_codes(3, 1, 4, 8, clip=5), 9),
    "codes, all": (seen_codes(0, 5, 4, 8, sight="full"), 9),
    "no codes": (seen_codes(0, 5, 4, 0), 1),
    "one frame": (seen_frames(0, 1, 4), 4),
}
each_mask = pytest.mark.parametrize("mask, keys", MASKS.values(), ids=MASKS)


# ---------------------------------------------------------------- one mask


def test_masks_by_hand():
    # Three latent frames of two tokens, two steps of two codes behind the null token.
    assert seen_frames(0, 3, 2).counts == (2, 4, 6) and seen_frames(2, 1, 2).counts == (6,)
    assert seen_frames(0, 3, 2, "full").counts == (6, 6, 6)
    assert seen_codes(0, 3, 2, 4).counts == (1, 3, 5) and seen_codes(2, 1, 2, 4, clip=3).counts == (5,)
    assert seen_codes(0, 3, 2, 4, sight="full").counts == (5, 5, 5)
    assert Mask(2, (1, 3)).dense(3).int().tolist() == [[1, 0, 0]] * 2 + [[1, 1, 1]] * 2


def attended(way, mask, keys, gradients=False):
    """Result of one way to attend and, if wanted, its gradients."""
    queries = mask.per_frame * len(mask.counts)
    shapes = ((2, 3, queries, 8), (2, 3, keys, 8), (2, 3, keys, 8))
    given = [draw(*shape, seed=seed).requires_grad_(gradients) for seed, shape in enumerate(shapes)]
    result = ATTENTION[way](*given, mask)
    if gradients:
        result.square().sum().backward()
    return [result.detach(), *(x.grad for x in given if gradients)]


@each_mask
@each_other
def test_every_way_gives_the_same(way, mask, keys):
    for mine, dense in zip(attended(way, mask, keys), attended("dense", mask, keys), strict=True):
        torch.testing.assert_close(mine, dense, atol=1e-6, rtol=1e-5)


@each_mask
def test_slices_have_the_same_gradients(mask, keys):
    for mine, dense in zip(attended("slices", mask, keys, True), attended("dense", mask, keys, True), strict=True):
        torch.testing.assert_close(mine, dense, atol=2e-6, rtol=1e-5)


def test_flex_does_not_train_on_a_cpu():
    with pytest.raises(UserError, match="set dldm.attention to slices or dense"):
        attended("flex", *MASKS["frames"], gradients=True)


@pytest.mark.parametrize("per_frame", [1, 48, BLOCK, 200])
def test_blocks_of_flex_attention(per_frame):
    for mask, keys in (
        (seen_frames(0, 5, per_frame), 5 * per_frame),
        (seen_frames(3, 2, per_frame), 5 * per_frame),
        (seen_codes(0, 5, per_frame, 4 * 60), 241),
    ):
        queries = per_frame * len(mask.counts)
        mine = block_mask(mask, keys, torch.device("cpu"))
        known = create_block_mask(mine.mask_mod, None, None, queries, keys, device="cpu", BLOCK_SIZE=BLOCK)
        assert mine.shape == known.shape
        assert torch.equal(mine.to_dense(), known.to_dense())
        for part in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
            assert torch.equal(getattr(mine, part), getattr(known, part)), part
        for row, number in enumerate(known.full_kv_num_blocks.flatten()):
            assert torch.equal(*(x.full_kv_indices[0, 0, row, :number].sort().values for x in (mine, known)))


@pytest.mark.gpu
@each_mask
@each_other
def test_every_way_gives_the_same_on_a_gpu(way, mask, keys):
    wide = Mask(mask.per_frame * 40, tuple(n * 40 for n in mask.counts))  # more than one block
    queries, keys = wide.per_frame * len(wide.counts), keys * 40
    results = {}
    for name in ("dense", way):
        given = [draw(2, 3, n, 32, seed=seed).cuda().requires_grad_() for seed, n in enumerate((queries, keys, keys))]
        mixed = ATTENTION[name](*given, wide)
        mixed.square().sum().backward()
        results[name] = [mixed.detach(), *(x.grad for x in given)]
    for mine, dense in zip(results[way], results["dense"], strict=True):
        torch.testing.assert_close(mine, dense, atol=1e-2, rtol=1e-2)


# ---------------------------------------------------------------- in the VDM


def latents(seed: int, frames: int = STEPS + 1) -> torch.Tensor:
    return draw(2, LATENT, frames, 4, 4, seed=seed)


def inputs() -> dict[str, torch.Tensor]:
    """What DLDM.velocity takes, for a clip of K = 4 steps."""
    index = torch.randint(0, 1000, (2, STEPS, QUERIES), generator=generator(4))
    codes, time = FSQ((8, 5, 5, 5)).to_codes(index), torch.tensor([0.3, 0.9])
    return {"noisy": latents(1), "time": time, "first": latents(2, 1), "codes": codes, "hint": latents(3)}


@pytest.mark.parametrize("sight", ["causal", "full"])
def test_velocity_is_the_same_every_way(sight):
    dldm, _ = tiny_dldm(self_attention=sight, cross_attention=sight)
    given, found = inputs(), {}
    for way in ATTENTION:
        dldm.vdm.layout.attention = way
        with torch.no_grad():
            found[way] = dldm.velocity(**given)
    for way in OTHERS:
        torch.testing.assert_close(found[way], found["dense"], atol=2e-5, rtol=1e-4)


def test_joint_loss_and_gradients_are_the_same_in_slices():
    found = {}
    for way in ("dense", "slices"):
        dldm, prior = tiny_dldm(attention=way)
        loss, _, _ = dldm(tiny_batch(prior), prior.vae, generator(0))
        loss.backward()
        found[way] = loss.detach(), torch.cat([p.grad.flatten() for p in dldm.parameters()])
    torch.testing.assert_close(found["slices"][0], found["dense"][0], rtol=1e-5, atol=0)
    assert (found["slices"][1] - found["dense"][1]).norm() < 1e-4 * found["dense"][1].norm()


def test_frames_have_their_own_times():
    dldm, given = tiny_dldm()[0], inputs()
    with torch.no_grad():
        shared = dldm.velocity(**given)
        same = given["time"][:, None].expand(-1, STEPS + 1)
        assert torch.equal(shared, dldm.velocity(**given | {"time": same})), "(B, L) of one time is (B,)"
        other = same.clone()
        other[:, 2] = 0.5
        own = dldm.velocity(**given | {"time": other})
    assert torch.equal(own[:, :, :2], shared[:, :, :2])
    for frame in (2, 3, 4):  # itself, and those that see it
        assert not torch.equal(own[:, :, frame], shared[:, :, frame])


# ---------------------------------------------------------------- the cache and frame-by-frame sampling


@pytest.mark.parametrize("way, cross", [("dense", "causal"), ("slices", "full"), ("flex", "causal")])
@pytest.mark.parametrize("autocast, apart", [(False, 1e-5), (True, 0.01)])
def test_cached_passes_equal_the_whole_pass(way, cross, autocast, apart):
    """Equal noise states: frame by frame with kept keys and values, or all frames at once."""
    dldm, _ = tiny_dldm(attention=way, cross_attention=cross)
    given, past, parts = inputs(), KVCache(), []
    time = torch.rand(2, STEPS + 1, generator=generator(8))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        whole = dldm.velocity(**given | {"time": time})
        for start, size in ((0, 2), (2, 1), (3, 2)):  # windows of more than one frame too
            frames = slice(start, start + size)
            window = {name: given[name][:, :, frames] for name in ("noisy", "hint")} | {"time": time[:, frames]}
            with dldm.vdm.layout.window(start, STEPS + 1, past):
                parts.append(dldm.velocity(**given | window))
                past.keep()
    assert (torch.cat(parts, dim=2) - whole).norm() < apart * whole.norm()
    blocks = len(dldm.vdm.transformer.transformer_blocks) + len(dldm.control.blocks)
    assert len(past.kept) == blocks, "each self-attention has its own past"
    layout = dldm.vdm.layout
    assert (layout.start, layout.clip, type(layout.past)) == (0, None, NoPast), "as before"


def test_what_is_not_kept_is_forgotten():
    past, owner = KVCache(), object()
    first, second, third = (draw(1, 1, 2, 4, seed=seed) for seed in range(3))
    past.join(owner, first, first)
    past.keep()
    assert past.join(owner, second, second)[0].shape[2] == 4
    key, value = past.join(owner, third, -third)
    assert torch.equal(key, torch.cat([first, third], 2)) and torch.equal(value, torch.cat([first, -third], 2))


def recomputed(dldm, given, noise, steps, shift, start):
    """Frame-by-frame sampling without a cache: all frames so far go through the VDM again, the past at time 0."""
    frames = given["first"]
    for t in range(1, STEPS + 1):
        hint, codes = given["hint"][:, :, : t + 1], given["codes"][:, :t]

        def velocity(x, time, frames=frames, hint=hint, codes=codes, t=t):
            times = torch.cat([torch.zeros(len(time), t), time[:, None]], dim=1)
            return dldm.velocity(torch.cat([frames, x], dim=2), times, given["first"], codes, hint)[:, :, -1:]

        frames = torch.cat([frames, integrate(velocity, noise[:, :, t : t + 1], steps, shift, start)], dim=2)
    return frames


@pytest.mark.parametrize("prediction, start", [("change", 0.4), ("velocity", 1.0)])
def test_frame_by_frame_with_cache_equals_without(prediction, start):
    dldm, prior = tiny_dldm(
        prediction=prediction,
        frame_times="independent",
        sampling_order="frames",
        sampling_steps=3,
        sampling_shift=2.0,
        sampling_start=start,
    )
    frame, noise = clip(frames=1), latents(5)
    index = torch.randint(0, 1000, (2, STEPS, QUERIES), generator=generator(4))
    with torch.no_grad():
        first, coarse = prior.vae.encode(frame), prior.vae.encode(dldm.ldm.coarse(frame, index))
        given = {"first": first, "hint": coarse - first, "codes": dldm.ldm.fsq.to_codes(index)}
        begin = add_noise(coarse, noise, torch.full((2,), start))
        without = prior.vae.decode(recomputed(dldm, given, begin, 3, 2.0, start))
    cached = dldm.render(prior.vae, frame, index, noise)
    torch.testing.assert_close(cached, without, atol=1e-4, rtol=1e-4)
    together = tiny_dldm(prediction=prediction, sampling_steps=3, sampling_shift=2.0, sampling_start=start)[0]
    other = together.render(prior.vae, frame, index, noise)
    assert torch.equal(cached[:, :, :1], other[:, :, :1]) and (cached - other).abs().max() > 1e-3


def test_a_frame_by_frame_video_does_not_know_later_codes():
    dldm, prior = tiny_dldm(frame_times="independent", sampling_order="frames")
    index = torch.randint(0, 1000, (2, STEPS, QUERIES), generator=generator(4))
    frame, noise = clip(frames=1), latents(5)
    before = dldm.render(prior.vae, frame, index, noise)
    for step in range(STEPS):
        late = index.clone()
        late[:, step:] = (late[:, step:] + 500) % 1000
        now, same = dldm.render(prior.vae, frame, late, noise), 4 * step + 1
        assert torch.equal(before[:, :, :same], now[:, :, :same])
        assert not torch.equal(before[:, :, same:], now[:, :, same:])


@pytest.mark.parametrize("changes", [{}, {"frame_times": "independent", "self_attention": "full"}])
def test_frame_by_frame_without_what_it_needs_is_refused(changes):
    with pytest.raises(ValueError, match="frames needs dldm.frame_times independent and dldm.self_attention causal"):
        tiny_config(sampling_order="frames", **changes)


# ---------------------------------------------------------------- noise levels of frames


def test_shared_times_are_what_they_were():
    assert torch.equal(FRAME_TIMES["shared"](5, 7, 1.2, generator(0)), draw_time(5, 1.2, generator(0)))
    assert torch.equal(noised(torch.rand(5) + 0.1, 7), torch.ones(5, 1, 7, 1, 1))


def test_independent_times():
    time = FRAME_TIMES["independent"](4000, 5, 1.2, generator(0))
    assert time.shape == (4000, 5) and (time[:, 0] == 0).all() and (time[:, -1] > 0).all() and time.max() < 1
    clean = (time == 0).sum(1)
    assert torch.equal((time == 0).long().cumprod(1).sum(1), clean), "clean frames are the first ones"
    share = torch.bincount(clean, minlength=6)[1:5] / 4000  # 1 to 4 clean frames, equally often
    torch.testing.assert_close(share, torch.full((4,), 0.25), atol=0.035, rtol=0)  # 5 standard errors
    logit = torch.logit(time[time > 0].double())
    assert logit.mean() == pytest.approx(1.2, abs=0.05) and logit.std() == pytest.approx(1, abs=0.04)
    both = torch.logit(time[clean == 1][:, 1:3].double())
    assert torch.corrcoef(both.T)[0, 1].abs() < 5 / len(both) ** 0.5, "frames are drawn on their own"
    assert torch.equal(FRAME_TIMES["independent"](3, 2, 1.2, generator(0))[:, 0], torch.zeros(3))


def test_each_frame_gets_its_own_noise():
    clean, noise = latents(1, 3), latents(2, 3)
    mixed = add_noise(clean, noise, torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.0, 0.25]]))
    assert torch.equal(mixed[0, :, 0], clean[0, :, 0]) and torch.equal(mixed[0, :, 2], noise[0, :, 2])
    torch.testing.assert_close(mixed[1, :, 2], 0.75 * clean[1, :, 2] + 0.25 * noise[1, :, 2])


def test_clean_frames_are_not_judged():
    clean, noise = latents(1, 3), latents(2, 3)
    time = torch.tensor([[0.0, 0.0, 0.5], [0.0, 0.3, 0.6]])
    weight, third = noised(time, 3), pytest.approx(4 / 3)
    assert weight[:, 0, :, 0, 0].tolist() == [[0, 0, third], [0, third, third]]
    wrong = noise - clean
    wrong[0, :, 1] += 100
    assert flow_loss(wrong, clean, noise, weight) == 0
    assert flow_loss(noise - clean + 3, clean, noise, weight) == pytest.approx(9, rel=1e-5), "the mean stays a mean"
    assert torch.equal(noised(time[:1], 3), weight[:1]), "a clip counts for as much whatever it goes through with"
    drawn = independent_times(20_000, 5, 0.0, generator(0))
    assert noised(drawn, 5)[:, :, 1:].mean().item() == pytest.approx(1, abs=0.01)


def test_joint_loss_with_independent_times():
    dldm, prior = tiny_dldm(frame_times="independent")
    loss, logs, _ = dldm(tiny_batch(prior), prior.vae, generator(0))
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in dldm.parameters())
    other = tiny_dldm()[0](tiny_batch(prior), prior.vae, generator(0))[1]
    assert not torch.equal(logs["train/denoise"], other["train/denoise"])


# ---------------------------------------------------------------- projection x cross-attention (table 3c)


@pytest.mark.parametrize("cross", ["causal", "full"])
@pytest.mark.parametrize("layers", [0, 1])
def test_projection_and_cross_attention(layers, cross):
    config = tiny_config().projection
    dldm, _ = tiny_dldm(projection=type(config)(width=16, layers=layers, max_steps=4), cross_attention=cross)
    given = inputs()
    codes = given["codes"].clone().requires_grad_()
    tokens = dldm.projection(codes)
    assert tokens.shape == (2, STEPS * QUERIES, 12)
    velocity = dldm.velocity(**given | {"codes": codes})
    assert velocity.shape == given["noisy"].shape
    velocity[:, :, 1:].square().sum().backward()
    assert (codes.grad.flatten(2).abs().amax(-1) > 0).all(), "every step learns"

    # Which latent frame hears which step: exactly those promised.
    for frame in range(1, STEPS + 1):
        codes.grad = None
        dldm.velocity(**given | {"codes": codes})[:, :, frame].square().sum().backward()
        heard = codes.grad.flatten(2).abs().amax((0, 2)) > 0
        assert heard.tolist() == [cross == "full" or step < frame for step in range(STEPS)]

    # Without the VDM: the tokens of a step hear the steps before it only where there is self-attention.
    for step in range(STEPS):
        codes.grad = None
        dldm.projection(codes)[:, step * QUERIES : (step + 1) * QUERIES].square().sum().backward()
        heard = codes.grad.flatten(2).abs().amax((0, 2)) > 0
        assert heard.tolist() == [other == step or (layers > 0 and other < step) for other in range(STEPS)]


@pytest.mark.parametrize("part", ["self_attention", "cross_attention"])
def test_full_sight_is_not_causal(part):
    dldm, _ = tiny_dldm(**{part: "full"})
    given = inputs()
    name = {"self_attention": "noisy", "cross_attention": "codes"}[part]
    other = given[name].clone()
    other.select({"noisy": 2, "codes": 1}[name], -1).add_(1)
    with torch.no_grad():
        before, now = dldm.velocity(**given), dldm.velocity(**given | {name: other})
    assert all(not torch.equal(before[:, :, t], now[:, :, t]) for t in range(1, STEPS + 1)), "all frames hear the end"


def test_the_layout_reaches_every_block():
    dldm, _ = tiny_dldm(attention="slices", cross_attention="full")
    blocks = [*dldm.vdm.transformer.transformer_blocks, *dldm.control.blocks.values()]
    processors = [attention.processor for block in blocks for attention in (block.attn1, block.attn2)]
    assert all(processor.layout is dldm.vdm.layout for processor in processors)
    assert dldm.vdm.layout.attention == "slices" and dldm.vdm.layout.code_sight == "full"
