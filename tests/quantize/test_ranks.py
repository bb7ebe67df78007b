"""Two gloo ranks: dead-code rules, special learning rules and balanced assignment leave bit-equal tables."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from smalti.quantize import (
    EMA,
    Anchors,
    BelowMean,
    IntervalRestart,
    NormalisedEMA,
    Quantize,
    RarelyUsed,
    Sinkhorn,
    SmoothedEMA,
    Table,
    TiledEMA,
    TiledRestart,
    Trained,
    Unused,
    sinkhorn,
)


def tables() -> dict[str, Table]:
    def table(**rules: object) -> Table:
        return Table(Trained(40, 4, torch.nn.init.normal_), **rules)  # type: ignore[arg-type]

    return {
        "mimi": table(learn=EMA(decay=0.9), revive=BelowMean()),
        "glm": table(learn=SmoothedEMA(decay=0.9), revive=IntervalRestart(every=4, decay=0.9)),
        "vat": table(revive=Unused(steps=3)),
        "slot-mllm": table(learn=EMA(decay=0.9), revive=RarelyUsed(share=0.5, every=4)),
        "titok": table(revive=Anchors()),
        "omnitokenizer": table(learn=TiledEMA(decay=0.9), revive=TiledRestart()),
        "rq-vae": table(learn=TiledEMA(jitter=torch.rand_like), revive=TiledRestart(jitter=torch.rand_like)),
        "beit": Table(Trained(40, 4), space="unit", learn=NormalisedEMA(0.9, 3)),
    }


def train(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    # A rank that falls out of step waits for ever: better an error.
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    torch.manual_seed(0)
    made = tables()
    start = {name: table.stored_rows().detach().clone() for name, table in made.items()}
    torch.manual_seed(100 + rank)  # every rank draws its own data and its own random numbers
    for step in range(25):
        z = torch.randn(1, 12 + 3 * rank + step % 2, 4)
        real = torch.ones(z.shape[:-1], dtype=torch.bool)
        if step % 7 == 3:
            real[:] = rank == 0  # the second rank has nothing this time
        for table in made.values():
            quantizer = Quantize(table).train()
            quantizer(z, mask=real)
            quantizer.update()
    balanced = Quantize(Table(Trained(8, 4, torch.nn.init.ones_)), assign=Sinkhorn()).train()
    balanced(torch.randn(1, 10 + rank, 4))  # ranks of different lengths stay in step
    moved = {name: not torch.equal(start[name], table.stored_rows()) for name, table in made.items()}
    states = {name: table.state_dict() for name, table in made.items()}
    torch.manual_seed(7)
    x, rows = torch.randn(30, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    rows -= rows.mean(0)
    own = sinkhorn.centred(x[:11] if rank == 0 else x[11:])
    torch.save([states, moved, sinkhorn.potential(own, rows, 0.2, 40)], f"{folder}/rank{rank}.pt")
    dist.barrier()  # a rank that leaves early can take the others down with it
    dist.destroy_process_group()


def test_rules_leave_bit_equal_tables(tmp_path: Path) -> None:
    mp.spawn(train, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert all(first[1].values()), first[1]
    for name, state in first[0].items():
        for key, value in state.items():
            assert torch.equal(value, second[0][name][key]), (name, key)
    # Both ranks together solve the transport of one that has all rows.
    torch.manual_seed(7)
    x, rows = torch.randn(30, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    alone = sinkhorn.potential(x - x.mean(0), rows - rows.mean(0), 0.2, 40)
    assert torch.allclose(first[2], alone) and torch.equal(first[2], second[2])
