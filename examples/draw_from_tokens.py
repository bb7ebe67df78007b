"""From a folder of photos to new pictures, in one script: tokenize, store, train a small transformer, draw, decode.

    python examples/draw_from_tokens.py PHOTOS --out drawn [--steps 200]

A few minutes on a laptop teach the transformer what codes look like, not what the world looks like; the point is the
way of the data.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.utils.data import DataLoader

import smalti
from smalti.generate import AutoregressiveTransformer, Sampling
from smalti.image.io import write_image
from smalti.nn.transformer import Transformer
from smalti.store import TokenDataset, encode_paths
from smalti.tokens import Tokens

SIDE = 64  # pixels; 8x8 codes a picture


def main(photos: Path, out: Path, steps: int) -> None:
    torch.manual_seed(0)
    tokenizer = smalti.load("smalti-photo-f8")
    encode_paths([photos], out / "store", tokenizer, reference="smalti-photo-f8", recipe={"size": SIDE}, workers=1)

    dataset = TokenDataset(out / "store")
    loader = DataLoader(dataset, batch_size=8, shuffle=True, collate_fn=Tokens.cat)
    first = dataset[0]
    label = torch.zeros(1, dtype=torch.int64)  # one class: a photo
    sizes = Transformer.Config(width=128, layers=4, heads=4, hidden=512, context=first.codes[0].numel())
    generator = AutoregressiveTransformer.Config(streams=first.spec, transformer=sizes).build()
    optimizer = torch.optim.AdamW(generator.parameters(), lr=1e-3)
    step = 0
    while step < steps:
        for tokens in loader:
            loss = generator(tokens, label=label.expand(len(tokens))).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % 20 == 0:
                print(f"step {step}  loss {float(loss.detach()):.3f}")
            if step == steps:
                break

    drawn = generator.generate(4, sampling=Sampling(top_k=50), seed=[0, 1, 2, 3], label=label.expand(4))
    for index, picture in enumerate(tokenizer.decode(drawn)):
        write_image(out / f"drawn{index}.png", picture)
    print(f"four pictures in {out}")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("photos", type=Path)
    options.add_argument("--out", type=Path, default=Path("drawn"))
    options.add_argument("--steps", type=int, default=200)
    arguments = options.parse_args()
    main(arguments.photos, arguments.out, arguments.steps)
