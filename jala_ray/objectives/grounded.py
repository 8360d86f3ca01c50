"""Grounded: masked chunk prediction, and h aligned with the motion that an inverse-dynamics teacher reads from the pair (method.md 5,
Grounded).

The teacher knows labels, the pair knows what happened: so an unlabelled clip says, through h, what motion its instruction and first frame
lead to. z is the teacher's motion, in a few directions, projected to K vectors by a fixed random matrix; h is compared by cosine, through a
head; no gradient reaches z.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jala_ray.batch import Batch, rows_at
from jala_ray.config import GroundedConfig
from jala_ray.models.inverse_dynamics import InverseDynamics, MotionReader
from jala_ray.models.vla import VLA, Out
from jala_ray.objectives.aligning import Projector, align_loss, of_pairs
from jala_ray.objectives.base import Features, Losses
from jala_ray.objectives.masked import MaskedPrediction
from jala_ray.objectives.monitors import alignment_monitors
from jala_ray.tokenizer.model import MotionTokenizer

PROJECTION_SEED = 0x6D07


class Grounded(MaskedPrediction):
    """`no_align` with a term more. LSP learns whole, by gradient; the teacher is given (`teach`) before weights are loaded."""

    def __init__(self, config: GroundedConfig, vla: VLA, feature_dim: int, grid: tuple[int, int]) -> None:
        super().__init__(config, vla, feature_dim, grid)
        self.config: GroundedConfig = config
        self.taps = (config.align.layer,)
        self.head = Projector(self.width) if config.align.head == "mlp" else nn.Identity()
        self.columns += ("pairs",)
        shape = (vla.vocab.chunk_tokens, config.teacher.directions, self.width)
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(PROJECTION_SEED))
        self.register_buffer("projection", drawn, persistent=False)
        self.projection: Tensor
        self.teacher: InverseDynamics | None = None
        self.reader: MotionReader | None = None
        self.tokenizer: MotionTokenizer | None = None

    def teach(self, teacher: InverseDynamics, tokenizer: MotionTokenizer) -> None:
        self.teacher = teacher
        self.needs_still = teacher.inputs.sight.of_pairs
        if self.config.teacher.form == "learned":
            directions = self.config.teacher.directions
            self.reader = MotionReader(teacher.inputs.size, self.config.teacher.width, directions)
            self.tokenizer = tokenizer.requires_grad_(False)

    def loss(self, vla: VLA, batch: Batch, features: Features | None, out: Out) -> Losses:
        """`1[labelled] L_MCP + L_text + lambda L_align`, and for a learned teacher its squared error on labelled chunks."""
        assert features is not None
        losses, align = self.predicted(vla, batch, out), self.config.align
        motion = self.motion(features)
        if self.reader is not None:
            losses.terms["teacher"], losses.has["teacher"] = self._teacher_loss(batch, motion)
        h = self.compared(rows_at(out.hidden[align.layer], batch.pair_at))
        z = of_pairs(self._projected(motion.detach()), batch)
        losses.terms["align"], losses.has["align"] = align_loss(align, batch, h, z)
        return losses

    def motion(self, features: Features) -> Tensor:
        """What the teacher reads from the pairs (C, 2 hands, R), in its directions of motion."""
        assert self.teacher is not None
        still = features.still if self.needs_still else None
        if self.reader is None:
            return self.teacher(features.pairs, still)
        return self.reader(self.teacher.inputs(features.pairs, still))

    def targets(self, features: Features) -> Tensor:
        return self._projected(self.motion(features).detach())

    def _projected(self, motion: Tensor) -> Tensor:
        """(C, 2, R) -> (C, 2, K, D)."""
        return torch.einsum("chr,krd->chkd", motion, self.projection)

    def _teacher_loss(self, batch: Batch, motion: Tensor) -> tuple[Tensor, Tensor]:
        """Of what was read (C, 2, R) on the batch's labelled hand-chunks -> (S,) mean squared error in variances of motion, (S,) has."""
        assert self.teacher is not None and self.tokenizer is not None
        at, chunks = batch.pair_at, 2 * len(motion)
        row = 2 * rows_at(batch.pair, at) + rows_at(batch.hand, at)
        tokens = self.projection.shape[0]
        nowhere = torch.full((chunks,), batch.ids.numel() - tokens, dtype=torch.int64, device=at.device)
        begin = nowhere.scatter_reduce(0, row, at - rows_at(batch.k, at), "amin")
        codes = batch.target.flatten()[begin[:, None] + torch.arange(tokens, device=at.device)]
        # A chunk that no place is aligned with has no beginning here, so the last tokens stand for it: they are no chunk's codes, or its
        # own.
        aligned = torch.zeros(chunks, dtype=torch.bool, device=at.device).index_fill(0, row, True)
        labelled = aligned & (codes >= 0).all(1)
        with torch.no_grad():
            true = self.teacher.motion(self.tokenizer.from_codes(codes.clamp(min=0)))
        error = (motion.float().flatten(0, 1) - true).square().sum(-1) * labelled
        owner = torch.zeros(chunks, dtype=torch.int64, device=at.device).scatter(0, row, rows_at(batch.sample, at))
        total = error.new_zeros(len(batch.weight)).index_add(0, owner, error)
        count = error.new_zeros(len(batch.weight)).index_add(0, owner, labelled.to(error.dtype))
        return total / count.clamp(min=1), count > 0

    def term_weights(self) -> dict[str, float]:
        return {"mcp": 1.0, "text": 1.0, "align": self.weight} | ({"teacher": 1.0} if self.reader is not None else {})

    @torch.no_grad()
    def monitors(self, batch: Batch, features: Features | None, out: Out) -> dict[str, float]:
        if features is None or len(features.pairs) < 2:
            return {}
        hidden, targets = self.compared(out.hidden[self.config.align.layer]), self.targets(features)
        return alignment_monitors(lambda _: targets, batch, Features(features.first, features.pairs), hidden, targets)
