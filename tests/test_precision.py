"""bfloat16 on a CPU: attention by products, Muon in bfloat16, which precision `auto` means."""

from dataclasses import asdict

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from vw2.models import attend as attention
from vw2.models.attend import attend, products
from vw2.models.qformer import FourierPlaces
from vw2.training import compute
from vw2.training.compute import ComputeConfig, keep_freed_memory
from vw2.training.muon import Muon, orthogonal


def given(queries: int = 5, keys: int = 7) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, n, 8, generator=rng).requires_grad_() for n in (queries, keys, keys)]


MASKS = {
    "none": None,
    "seen": torch.ones(5, 7, dtype=torch.bool).tril(2),
    "bias": torch.linspace(-2, 2, 35).view(5, 7),
    "bias that hides": torch.zeros(5, 7).masked_fill(torch.ones(5, 7, dtype=torch.bool).triu(3), float("-inf")),
}
each_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


@each_mask
def test_products_are_attention(mask):
    """In float32 the same numbers and gradients as torch's own."""
    results = []
    for way in (products, lambda q, k, v, m: scaled_dot_product_attention(q, k, v, attn_mask=m)):
        inputs = given()
        out = way(*inputs, mask)
        out.square().sum().backward()
        results.append([out.detach(), *(each.grad for each in inputs)])
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@each_mask
def test_attend_is_torchs_own_without_autocast_and_near_it_with(mask):
    inputs = given()
    exact = scaled_dot_product_attention(*inputs, attn_mask=mask)
    assert torch.equal(attend(*inputs, mask), exact)
    with torch.autocast("cpu", torch.bfloat16):
        near = attend(*inputs, mask)
        assert torch.is_autocast_enabled("cpu")
    assert near.dtype == torch.bfloat16
    assert (near - exact).abs().max() < 0.03
    near.float().sum().backward()
    assert all(each.grad.dtype == torch.float32 and each.grad.isfinite().all() for each in inputs)


def test_what_is_seen_alone_is_given_back():
    query, key, value = (each.detach().bfloat16() for each in given())
    only = torch.zeros(5, 7, dtype=torch.bool)
    only[:, 3] = True
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attend(query, key, value, only), value[:, :, 3:4].expand(-1, -1, 5, -1))
        still = attend(torch.zeros_like(query), key, value)
    assert torch.allclose(still.float(), value.float().mean(2, keepdim=True).expand(-1, -1, 5, -1), atol=0.02)


def test_large_attention_stays_fused(monkeypatch):
    """All weights in memory would be too many."""
    monkeypatch.setattr(attention, "products", lambda *_: pytest.fail("2 x 3 x 5 x 7 weights were not to be kept"))
    monkeypatch.setattr(attention, "MOST", 2 * 3 * 5 * 7 - 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert attend(*given()).shape == (2, 3, 5, 8)


def test_muon_in_bfloat16_moves_nearly_as_in_float32():
    moved = []
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.nn.Parameter(torch.zeros(6, 8))
        weight.grad = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
        Muon([weight], lr=1.0, dtype=dtype).step()
        assert weight.dtype == torch.float32
        values = torch.linalg.svdvals(weight.detach())
        assert 0.6 < values.min() and values.max() < 1.3
        moved.append(weight.detach())
    assert (moved[0] - moved[1]).norm() < 0.05 * moved[0].norm()


@pytest.mark.parametrize("shape", [(64, 576), (576, 64), (64, 64), (256, 5120)])
def test_singular_values_in_bfloat16_stay_near_one_at_low_rank(shape):
    rng = torch.Generator().manual_seed(0)
    given = torch.randn(1, shape[0], 4, generator=rng) @ torch.randn(1, 4, shape[1], generator=rng)
    values = torch.linalg.svdvals(orthogonal(given, dtype=torch.bfloat16))[0]
    assert values[0] < 1.3 and values[3] > 0.5


@pytest.mark.parametrize("has", [True, False])
def test_auto_is_bfloat16_where_the_processor_has_it(monkeypatch, has):
    monkeypatch.setattr(compute, "has_bfloat16", lambda: has)
    for dtype, wanted in {
        "auto": "bfloat16" if has else "float32",
        "bfloat16": "bfloat16",
        "float32": "float32",
    }.items():
        assert asdict(ComputeConfig(dtype=dtype)) == {"threads": 2, "dtype": wanted}, "in fingerprints too"


@pytest.mark.parametrize(
    "flags, has", [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx2": True}, False)]
)
def test_what_the_processor_says(monkeypatch, flags, has):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert compute.has_bfloat16() is has


@pytest.mark.parametrize("error", [OSError, TypeError, AttributeError])
def test_other_c_libraries_are_left_alone(monkeypatch, error):
    def refuse(_):
        raise error

    monkeypatch.setattr(compute.ctypes, "CDLL", refuse)
    keep_freed_memory()


def test_places_of_pixels_are_as_fine_under_autocast():
    """Or the codes that training and extraction see would be of other places."""
    torch.manual_seed(0)
    places = FourierPlaces(64)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = places(15, 26)
    assert torch.equal(coarse, places(15, 26))
