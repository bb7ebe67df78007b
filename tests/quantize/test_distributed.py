"""Two gloo ranks: codebooks stay bit-equal, and learn what one process learns from the whole batch."""

from __future__ import annotations

import math
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from smalti.quantize import Dropout, Quantize, Residual, SoftEntropy, Table, Trained, create
from smalti.quantize.distributed import mean_over_ranks


def train(rank: int, folder: str, steps: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.manual_seed(0)
    one = create("ema", dim=4, codes=32, decay=0.9, kmeans_iterations=5, expire=1.0)
    levels = [create("ema", dim=4, codes=16, decay=0.9, kmeans_iterations=5, expire=1.0) for _ in range(3)]
    rvq = Residual(levels, dropout=Dropout())
    torch.manual_seed(100 + rank)  # every rank draws its own data and its own random numbers
    for step in range(steps):
        z = torch.randn(2, 30 + 5 * rank + step % 3, 4)
        one(z)
        rvq(z)
        one.update()
        rvq.update()
    torch.save([one.state_dict(), rvq.state_dict()], f"{folder}/rank{rank}.pt")
    dist.barrier()  # a rank that leaves early can take the others down with it
    dist.destroy_process_group()


@pytest.mark.parametrize("steps", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_tables_are_bit_equal_on_all_ranks(steps: int, tmp_path: Path) -> None:
    mp.spawn(train, args=(str(tmp_path), steps), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    for one, other in zip(first, second, strict=True):
        for key, value in one.items():
            assert torch.equal(value, other[key]), key


def average(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.manual_seed(0)
    vq = create("ema", dim=3, codes=8, kmeans_iterations=0, expire=0)
    z = torch.randn(4, 20, 3)
    out = vq(z[2 * rank : 2 * rank + 2])
    vq.update()
    if rank == 0:
        torch.save([vq.state_dict(), out.terms["perplexity"]], f"{folder}/ranks.pt")
    dist.barrier()  # a rank that leaves early can take the others down with it
    dist.destroy_process_group()


def test_two_ranks_learn_what_one_learns_from_both_batches(tmp_path: Path) -> None:
    mp.spawn(average, args=(str(tmp_path),), nprocs=2)
    state, perplexity = torch.load(tmp_path / "ranks.pt", weights_only=True)
    torch.manual_seed(0)
    vq = create("ema", dim=3, codes=8, kmeans_iterations=0, expire=0)
    out = vq(torch.randn(4, 20, 3))
    vq.update()
    for key, value in vq.state_dict().items():
        assert torch.allclose(value, state[key], atol=1e-6), key
    assert torch.allclose(out.terms["perplexity"], perplexity)


ENTROPIES = {
    "bits": lambda: create("lookup-free", bits=4, groups=2, entropy_weight=0.5),
    "soft": lambda: Quantize(Table(Trained(8, 8, torch.nn.init.normal_)), terms=[SoftEntropy(0.5, temperature=0.7)]),
    "dots": lambda: create("ibq", dim=8, codes=8, entropy_weight=0.5, temperature=0.7),
}


def entropies(z: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Loss and gradients of layers in front of quantizers with an entropy term."""
    found = {}
    for name, build in ENTROPIES.items():
        torch.manual_seed(0)
        layer, vq = torch.nn.Linear(8, 8), build()
        loss = vq(layer(z)).loss
        parameters = [*layer.parameters(), *(each for each in vq.parameters() if each.requires_grad)]
        slopes = torch.autograd.grad(loss, parameters)
        found[name] = loss.detach(), torch.cat([each.flatten() for each in slopes])
    return found


def averaged_entropies(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.manual_seed(1)
    found = entropies(torch.randn(4, 20, 8)[2 * rank : 2 * rank + 2])
    means = {name: [mean_over_ranks(each) for each in pair] for name, pair in found.items()}  # as DDP does
    if rank == 0:
        torch.save(means, f"{folder}/ranks.pt")
    dist.barrier()  # a rank that leaves early can take the others down with it
    dist.destroy_process_group()


def test_entropy_terms_of_two_ranks_are_those_of_one_with_both_batches(tmp_path: Path) -> None:
    mp.spawn(averaged_entropies, args=(str(tmp_path),), nprocs=2)
    means = torch.load(tmp_path / "ranks.pt", weights_only=True)
    torch.manual_seed(1)
    for name, whole in entropies(torch.randn(4, 20, 8)).items():
        for ours, expected in zip(means[name], whole, strict=True):
            assert torch.allclose(ours, expected, atol=1e-6), name


def train_with_empty_batches(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    # A rank that falls out of step waits for ever: better an error.
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=30)
    )
    torch.manual_seed(0)
    one = create("ema", dim=4, codes=32, decay=0.9, kmeans_iterations=5, expire=1.0)
    rvq = Residual([create("ema", dim=4, codes=16, kmeans_iterations=5, expire=1.0) for _ in range(3)])
    seen = []
    for step in range(12):
        z, real = torch.randn(2, 2, 30, 4), torch.ones(2, 2, 30, dtype=torch.bool)
        # No rank has rows in the first step; then the first rank, the second, none, or no mask hides any.
        real[0] = step % 4 not in (0, 1)
        real[1] = step % 4 not in (0, 2)
        out, levels = one(z[rank], mask=real[rank]), rvq(z[rank], mask=real[rank])
        codes = torch.where(real[rank], out.codes[..., 0], -1)
        gathered = [torch.empty_like(codes) for _ in range(2)]
        dist.all_gather(gathered, codes)
        seen.append((torch.stack(gathered), out.terms, levels.terms["utilisation"]))
        one.update()
        rvq.update()
    torch.save([one.state_dict(), rvq.state_dict(), seen], f"{folder}/rank{rank}.pt")
    dist.barrier()  # a rank that leaves early can take the others down with it
    dist.destroy_process_group()


def test_ranks_stay_in_step_where_a_batch_is_masked_as_a_whole(tmp_path: Path) -> None:
    mp.spawn(train_with_empty_batches, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    for one, other in zip(first[:2], second[:2], strict=True):
        for key, value in one.items():
            assert torch.equal(value, other[key]), key
    for (codes, terms, shares), (_, other_terms, other_shares) in zip(first[2], second[2], strict=True):
        counts = Counter(codes[codes >= 0].tolist())
        shares_of = [count / counts.total() for count in counts.values()]
        assert terms["perplexity"].item() == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares_of)), rel=1e-4)
        assert terms["utilisation"].item() == pytest.approx(len(counts) / 32)
        assert torch.equal(terms["perplexity"], other_terms["perplexity"])
        assert torch.equal(shares, other_shares)
