"""Our lookup against vector-quantize-pytorch, and the learning rules around it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from vector_quantize_pytorch import VectorQuantize

from jala_ray.config import TokenizerConfig
from jala_ray.tokenizer import ranks
from jala_ray.tokenizer.quantizer import EmaQuantizer, ResidualCodebooks

SIZES = {"width": 32, "groups": 2, "levels": 4, "codes": 64}


def learned(threshold: float = 0.1, decay: float = 0.9) -> EmaQuantizer:
    config = TokenizerConfig(**SIZES, decay=decay, dead_code_threshold=threshold, kmeans_iters=5)
    quantizer = EmaQuantizer(config, vectors_per_step=128 * 4)
    quantizer.train()
    for _ in range(5):
        quantizer(torch.randn(128, 4, 32))
    return quantizer


def first_codebook(quantizer: EmaQuantizer) -> Any:
    """The library's state of group 0, level 0."""
    return next(m for m in quantizer.modules() if isinstance(m, VectorQuantize))._codebook


def exported(quantizer: EmaQuantizer) -> ResidualCodebooks:
    books = ResidualCodebooks(**SIZES)
    books.vectors.copy_(quantizer.codebooks())
    return books


def test_lookup_gives_the_librarys_codes_and_vectors() -> None:
    quantizer = learned().eval()
    books = exported(quantizer)
    z = torch.randn(300, 4, 32)
    with torch.no_grad():
        expected, codes, _ = quantizer.vq(z)
    ours = books.encode(z)
    assert ours.shape == (300, 2, 4, 4)
    assert torch.equal(ours, codes.transpose(0, 1))
    assert torch.allclose(books.decode(ours), expected, atol=1e-6)


def test_training_forward_uses_the_same_codes() -> None:
    quantizer = learned()
    books = exported(quantizer)
    z = torch.randn(64, 4, 32)
    quantised, _, codes = quantizer(z)  # looks up before it updates
    assert torch.equal(codes, books.encode(z))
    assert torch.allclose(quantised, books.decode(codes), atol=1e-5)


def test_each_level_is_the_nearest_code_of_the_residual() -> None:
    books = ResidualCodebooks(**SIZES)
    z = torch.randn(5, 4, 32)
    codes = books.encode(z)
    for group in range(2):
        residual = z[..., group * 16 : (group + 1) * 16].double()
        for level in range(4):
            book = books.vectors[group, level].double()
            nearest = torch.cdist(residual, book.expand(5, -1, -1)).argmin(-1)
            assert torch.equal(codes[:, group, :, level], nearest)
            residual = residual - book[nearest]


def test_more_levels_come_closer() -> None:
    books = exported(learned())
    z = torch.randn(100, 4, 32)
    codes = books.encode(z)
    errors = []
    for kept in range(1, 5):
        part = ResidualCodebooks(32, 2, kept, 64)
        part.vectors.copy_(books.vectors[:, :kept])
        errors.append((part.decode(codes[..., :kept]) - z).square().mean().item())
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.5 * errors[0]


def test_gradient_is_straight_through_and_exact() -> None:
    z = torch.randn(8, 4, 32, requires_grad=True)
    weight = torch.randn(8, 4, 32)
    quantised, _, _ = learned()(z)
    (quantised * weight).sum().backward()
    assert z.grad is not None and torch.allclose(z.grad, weight)


def test_commitment_is_the_mean_squared_residual() -> None:
    quantizer = learned()
    books = exported(quantizer)
    z = torch.randn(16, 4, 32)
    _, commitment, codes = quantizer(z)
    expected = []
    for level in range(4):
        part = ResidualCodebooks(32, 2, level + 1, 64)
        part.vectors.copy_(books.vectors[:, : level + 1])
        expected.append((part.decode(codes[..., : level + 1]) - z).square().mean())
    assert torch.allclose(commitment, torch.stack(expected).mean(), rtol=1e-4)


def test_dead_codes_are_replaced_and_stay_a_while() -> None:
    quantizer = learned()
    layer = first_codebook(quantizer)
    layer.embed[:, :32] = 1e3  # half the codes far away from everything, and not used for long
    layer.embed_avg[:, :32] = 0.0
    layer.cluster_size[:, :32] = 0.0
    quantizer(torch.randn(128, 4, 32))
    assert quantizer.codebooks()[0, 0].abs().max() < 10
    share = 128 * 4 / 64
    assert (layer.cluster_size[0, :32] >= 0.99 * share).all()


def test_without_a_threshold_no_code_is_replaced() -> None:
    quantizer = learned(threshold=0.0)
    layer = first_codebook(quantizer)
    layer.embed[:, :4] = 1e3
    layer.embed_avg[:, :4] = 1e3 * layer.cluster_size[:, :4, None]
    quantizer(torch.randn(128, 4, 32))
    assert (quantizer.codebooks()[0, 0, :4] > 900).all()


def batch() -> torch.Tensor:
    return torch.randn(128, 4, 32, generator=torch.Generator().manual_seed(1))


def one_of_two(rank: int, root: str) -> None:
    """Entry of a spawned process. What the second rank has learned has drifted, as sums on another GPU make it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    store = dist.FileStore(f"{root}/store", 2)
    quantizer = learned()
    state = torch.get_rng_state()
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=600))
    layer = first_codebook(quantizer)
    if rank:
        layer.embed += 0.01
        layer.embed_avg += 0.01
        layer.cluster_size[:, :8] = 0.0
    torch.set_rng_state(state)
    quantizer(batch().chunk(2)[rank])
    torch.save(quantizer.state_dict(), f"{root}/rank{rank}.pt")
    dist.destroy_process_group()


def test_codebooks_that_drifted_apart_are_those_of_the_first_rank_again(tmp_path: Path) -> None:
    mp.spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    torch.manual_seed(0)
    alone = learned()
    alone(batch())
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    for name, value in alone.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        assert torch.equal(first[name], value), name


def test_ranks_log_the_same_value_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """And each has its own part's gradient, times as many as there are ranks."""
    monkeypatch.setattr(ranks, "count", lambda: 3)
    value = torch.rand(1000, dtype=torch.float32)
    x = torch.rand(1000, requires_grad=True)
    taken = ranks._with_value(x, value)
    assert torch.equal(taken, value)
    taken.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.full((1000,), 3.0))
