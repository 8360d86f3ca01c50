"""Training of the motion tokenizer: the learner with its losses (method.md 2), a step, and a single-process
loop.

A distributed job uses the same parts: it wraps `TokenizerLearner` in DDP (with broadcast_buffers=False: the
codebooks keep themselves in step), feeds every rank its part of the `batches`, and calls `train_step`. Its
numbers are those of one process, whatever the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jala_ray.config import TokenizerConfig, TokenizerTrainConfig
from jala_ray.tokenizer import ranks
from jala_ray.tokenizer.model import PARTS, MotionTokenizer
from jala_ray.tokenizer.quantizer import EmaQuantizer
from jala_ray.tokenizer.statistics import FeatureStats
from jala_ray.types import CHUNK_FRAMES, FEATURE_DIM, UserError


def velocity_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Smooth L1 between frame-to-frame differences of (C, T, D) motions: zero under a constant offset."""
    return F.smooth_l1_loss(prediction.diff(dim=1), target.diff(dim=1))


class TokenizerLearner(nn.Module):
    """A tokenizer with its EMA quantisers; forward gives the losses.

    `batch` is chunks per step, over all ranks. Its state dict has everything a resumed run needs, the moving averages included.
    """

    def __init__(self, tokenizer: MotionTokenizer, batch: int) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        config = tokenizer.config
        self.quantizers = nn.ModuleDict(
            {name: EmaQuantizer(config, vectors_per_step=batch * config.steps) for name in PARTS}
        )

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"features": raw (C, 15, 99) of this rank} -> "loss" and, for each part, "loss_rec_*", "loss_vel_*",
        "loss_commit_*", all of the whole batch.

        Reconstruction and velocity are smooth L1 in normalised space (quadratic below one std, linear above
        it, so that outliers of pseudo-labels don't rule), averaged over chunks, frames and features. loss =
        sum over the parts of rec + velocity * vel + commitment * commit.
        """
        config = self.tokenizer.config
        losses: dict[str, Tensor] = {}
        whole = torch.zeros((), device=self.tokenizer.mean.device)
        chunks = torch.tensor(float(len(batch["features"])), device=whole.device, dtype=self.tokenizer.mean.dtype)
        share = chunks / ranks.total(chunks)
        for name, target in self.tokenizer.normalise(batch["features"]).items():
            part = self.tokenizer.part(name)
            quantised, commit, _ = self.quantizers[name](part.to_latent(target))
            prediction = part.from_latent(quantised)
            rec = ranks.total(share * F.smooth_l1_loss(prediction, target))
            vel = ranks.total(share * velocity_loss(prediction, target))
            whole = whole + rec + config.velocity * vel + config.commitment * commit
            losses |= {f"loss_rec_{name}": rec, f"loss_vel_{name}": vel, f"loss_commit_{name}": commit}
        return {"loss": whole, **losses}

    @torch.no_grad()
    def export(self) -> MotionTokenizer:
        """The tokenizer with the codebooks as learned so far: what is evaluated, saved and used."""
        for name, quantizer in self.quantizers.items():
            assert isinstance(quantizer, EmaQuantizer)
            self.tokenizer.part(name).codebooks.vectors.copy_(quantizer.codebooks())
        return self.tokenizer


def learning_rate(step: int, config: TokenizerTrainConfig) -> float:
    """Rate of step 0, 1, ...: linear warm-up, then a cosine to a tenth of the peak at the last step."""
    warmup = round(config.steps * config.warmup)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - 1 - warmup)
    return config.lr * (0.55 + 0.45 * math.cos(math.pi * min(1.0, progress)))


def build_optimizer(learner: nn.Module, config: TokenizerTrainConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(learner.parameters(), config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Tensor],
    step: int,
    config: TokenizerTrainConfig,
) -> dict[str, float]:
    """One update of a TokenizerLearner (or of DDP around one); returns the losses, "lr" and "grad_norm".

    Raises UserError on every rank alike, before the update, when the gradient is not finite.
    """
    lr = learning_rate(step, config)
    for group in optimizer.param_groups:
        group["lr"] = lr
    model.train()
    losses = model(batch)
    optimizer.zero_grad(set_to_none=True)
    losses["loss"].backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    if not torch.isfinite(norm):
        remedy = f"Lower train.lr (it is {config.lr:g}); checkpoints are from before."
        raise UserError("tokenizer grad_norm", float(norm), f"a finite number at step {step}", remedy)
    optimizer.step()
    return {name: value.item() for name, value in losses.items()} | {"lr": lr, "grad_norm": norm.item()}


def batches(
    count: int, config: TokenizerTrainConfig, rank: int = 0, ranks: int = 1, start: int = 0
) -> Iterator[np.ndarray]:
    """Chunk indices of this rank for steps start, start + 1, ..., config.steps - 1: its part of config.batch.

    Epochs are permutations keyed by (seed, epoch) and laid end to end; step s takes the next `batch` indices,
    dealt out to the ranks in order and as evenly as can be. So a resumed run continues where it stopped, and
    what a step sees depends neither on the worker that asks nor on their number. Raises UserError where there
    are more ranks than chunks per step.
    """
    if count < 1:
        raise UserError("tokenizer training data", f"{count} chunks", "at least one labelled chunk")
    if config.batch < ranks:
        raise UserError("train.batch", config.batch, f"at least one chunk for each of {ranks} workers", "Raise it.")
    part = np.arange(config.batch * rank // ranks, config.batch * (rank + 1) // ranks)
    epoch, order = -1, np.zeros(0, np.int64)
    for step in range(start, config.steps):
        at = step * config.batch + part
        indices = np.empty(len(part), np.int64)
        for turn in np.unique(at // count):
            if turn != epoch:
                epoch, order = turn, np.random.default_rng([config.seed, int(turn)]).permutation(count)
            inside = at // count == turn
            indices[inside] = order[at[inside] % count]
        yield indices


@torch.no_grad()
def held_out_losses(tokenizer: MotionTokenizer, features: Tensor) -> dict[str, float]:
    """Reconstruction losses of an exported tokenizer through its ids: {"val_rec_wrist", "val_rec_finger"}."""
    decoded = tokenizer.normalise(tokenizer.decode(tokenizer.encode(features)))
    target = tokenizer.normalise(features)
    return {f"val_rec_{name}": F.smooth_l1_loss(decoded[name], target[name]).item() for name in PARTS}


@dataclass(frozen=True)
class FitResult:
    tokenizer: MotionTokenizer
    """Trained, in evaluation mode, with its statistics."""
    history: list[dict[str, float]]
    """One row a logged step: "step", the losses, "lr", "grad_norm", and "val_rec_*" where evaluated."""


def fit(
    features: np.ndarray | Tensor,
    config: TokenizerConfig,
    train: TokenizerTrainConfig,
    *,
    held_out: np.ndarray | Tensor | None = None,
    stats: FeatureStats | None = None,
    on_log: Callable[[dict[str, float]], None] | None = None,
    device: str = "cpu",
) -> FitResult:
    """Train on raw features (C, 15, 99) of labelled chunks in this process; a seed gives one tokenizer.

    `stats` are those of `features` by default. The global random state is left as it was.
    """
    data = torch.as_tensor(features, dtype=torch.float32)
    if data.ndim != 3 or data.shape[1:] != (CHUNK_FRAMES, FEATURE_DIM):
        raise UserError("features", tuple(data.shape), f"(C, {CHUNK_FRAMES}, {FEATURE_DIM})")
    validation = None if held_out is None else torch.as_tensor(held_out, dtype=torch.float32)
    stats = FeatureStats.of(data.numpy()) if stats is None else stats
    history: list[dict[str, float]] = []
    with torch.random.fork_rng():
        torch.manual_seed(train.seed)
        tokenizer = MotionTokenizer(config).to(device)
        tokenizer.set_stats(torch.from_numpy(stats.mean), torch.from_numpy(stats.std()))
        learner = TokenizerLearner(tokenizer, train.batch).to(device)
        optimizer = build_optimizer(learner, train)
        for step, indices in enumerate(batches(len(data), train)):
            row = train_step(learner, optimizer, {"features": data[indices].to(device)}, step, train)
            last = step + 1 == train.steps
            evaluate = validation is not None and ((step + 1) % train.eval_every == 0 or last)
            if validation is not None and evaluate:
                row |= held_out_losses(learner.export(), validation)
            if evaluate or last or step % train.log_every == 0:
                history.append({"step": step, **row})
                if on_log is not None:
                    on_log(history[-1])
    return FitResult(learner.export().eval(), history)
