"""Small language models, trained from nothing on the CPU, that tell tokenizers apart by bits per byte.

    text ──tokenizer──► EncodedText ──► Llama of 4 layers (a `transformers` config) ──► bits per byte of held-out text

Perplexities of different tokenizers can't be compared; the bits that a held-out byte costs can. Runs are equal in
the parameters of their bodies and in the bytes they are trained on, so a tokenizer that packs more bytes into a token
takes fewer steps. Tables (input embedding, output head) grow with the vocabulary and are counted apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from smalti.errors import ConfigError
from smalti.text.base import IdArray

BATCH, HEADS = 16, 4
RATE, BETAS, WEIGHT_DECAY, WARM_UP, CLIP = 1e-3, (0.9, 0.95), 0.1, 0.1, 1.0
LOGITS_AT_ONCE = 1 << 25  # numbers, 128 MB


@dataclass(frozen=True)
class EncodedText:
    """Text as a model reads it.

    Args:
        ids: one long row of ids.
        bytes: how many bytes of text they stand for.
    """

    ids: IdArray
    bytes: int


@dataclass(frozen=True)
class Trained:
    """What a run ended with.

    Args:
        bits_per_byte: of the held-out text: its summed loss / ln 2 / bytes.
        body_parameters: of the transformer between the tables.
        embedding_parameters: of input embedding and output head, trained or not.
        training_bytes: bytes of text seen, with repetitions.
        steps: of the optimizer.
    """

    bits_per_byte: float
    body_parameters: int
    embedding_parameters: int
    training_bytes: int
    steps: int

    def __str__(self) -> str:
        return (
            f"{self.body_parameters:,} body and {self.embedding_parameters:,} embedding parameters, "
            f"{self.training_bytes:,} training bytes in {self.steps} steps"
        )


def train_language_model(
    train: EncodedText,
    heldout: EncodedText,
    *,
    vocab: int,
    seed: int,
    dim: int = 256,
    layers: int = 4,
    context: int = 128,
    training_bytes: int = 1 << 20,
    embedding: Tensor | None = None,
    frozen: bool = False,
) -> Trained:
    """Trains a model and measures it.

    Args:
        train: text to train on; windows of it are drawn at random.
        heldout: text to measure on, all of it.
        vocab: number of ids.
        seed: of the weights and of the windows.
        dim: width of the model.
        layers: of the transformer; the defaults have 3.2 M body parameters.
        context: ids that a window holds.
        training_bytes: after how many bytes of text (the mean bytes of a token times the tokens seen) training ends.
        embedding: (vocab, width): the input table to start from; where width < dim, rows repeat dim / width times.
        frozen: the input table is not trained. The output head always is, and is never tied to the input.

    Raises:
        ConfigError: if the table does not fit, or the text is shorter than a window.
    """
    if len(train.ids) <= context or len(heldout.ids) < 2:
        raise ConfigError(f"{len(train.ids)} and {len(heldout.ids)} ids are too few for windows of {context}")
    torch.manual_seed(seed)
    model = _model(vocab, dim, layers, context)
    table: Tensor = model.model.embed_tokens.weight
    if embedding is not None:
        with torch.no_grad():
            table.copy_(_widened(embedding, vocab, dim))
    table.requires_grad_(not frozen)
    step_bytes = BATCH * context * train.bytes / len(train.ids)
    steps = max(1, math.ceil(training_bytes / step_bytes))
    _train(model, torch.from_numpy(train.ids.astype(np.int64)), context, steps, seed)
    bits = heldout_bits(model, heldout.ids, context)
    tables = 2 * vocab * dim
    return Trained(
        bits_per_byte=bits / heldout.bytes,
        body_parameters=sum(each.numel() for each in model.parameters()) - tables,
        embedding_parameters=tables,
        training_bytes=round(steps * step_bytes),
        steps=steps,
    )


@torch.inference_mode()
def heldout_bits(model: LlamaForCausalLM, ids: IdArray, context: int) -> float:
    """The bits that a model needs for all ids.

    Windows overlap by half, so that an id is predicted from half a context at least, where there is as much before it.
    The first id has none and costs log2 of the vocabulary.
    """
    model.eval()
    row = torch.from_numpy(ids.astype(np.int64))
    half, nats, done = max(1, context // 2), math.log(model.config.vocab_size), 1
    while done < len(row):
        start = max(0, done - 1 - half)
        window = row[start : start + context + 1]
        hidden = model.model(window[None, :-1]).last_hidden_state[0, done - 1 - start :]
        nats += float(_loss(model, hidden, window[done - start :]))
        done = start + len(window)
    return nats / math.log(2)


def _model(vocab: int, dim: int, layers: int, context: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=dim,
        intermediate_size=(8 * dim // 3 + 31) // 32 * 32,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


def _widened(embedding: Tensor, vocab: int, dim: int) -> Tensor:
    if embedding.ndim != 2 or len(embedding) != vocab or dim % embedding.shape[1]:
        raise ConfigError(f"an embedding must be ({vocab}, a divisor of {dim}), this one is {tuple(embedding.shape)}")
    return embedding.repeat(1, dim // embedding.shape[1])


def _train(model: LlamaForCausalLM, row: Tensor, context: int, steps: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)
    warm_up = max(1, round(WARM_UP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    model.train()
    for _ in range(steps):
        starts = torch.randint(len(row) - context, (BATCH, 1), generator=draw)
        windows = row[starts + torch.arange(context + 1)]
        hidden = model.model(windows[:, :-1]).last_hidden_state
        loss = _loss(model, hidden.flatten(0, 1), windows[:, 1:].flatten()) / (BATCH * context)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        schedule.step()


def _loss(model: LlamaForCausalLM, hidden: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy; large vocabularies go in parts whose logits are computed again for the gradient."""
    rows = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    if len(targets) <= rows:
        return F.cross_entropy(model.lm_head(hidden), targets, reduction="sum")
    parts = [
        torch.utils.checkpoint.checkpoint(_loss, model, *part, use_reentrant=False)
        for part in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return torch.stack(parts).sum()
