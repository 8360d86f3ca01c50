"""A checkpoint that generates motion, one picture at a time or in batches (METHOD 7)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from jala_ray.config import GenerationConfig
from jala_ray.data.samples.collate import collate
from jala_ray.data.samples.source import Visuals
from jala_ray.generation.context import Context, Piece
from jala_ray.generation.decoding import Job, Watch, decode_causal, decode_masked
from jala_ray.generation.motion import Motion, mean_motion
from jala_ray.generation.prompt import Prompt, lay_out, words
from jala_ray.storage import StorageOptions
from jala_ray.tokenizer.model import MotionTokenizer
from jala_ray.training import checkpoint
from jala_ray.training.loop import autocast, to_device
from jala_ray.types import CHUNK_FRAMES, CHUNK_SECONDS, FEATURE_DIM, HAND_NAMES, Hand, UserError

Picture = str | os.PathLike[str] | Image.Image | np.ndarray
"""A file, a PIL image, or (H, W, 3) uint8 RGB."""


class Generator:
    """Holds a loaded checkpoint on a device. `generate` is for people, `batch` for prompts."""

    def __init__(
        self, loaded: checkpoint.Loaded, settings: GenerationConfig | None = None, device: torch.device | None = None
    ) -> None:
        """Raises `UserError` for a checkpoint whose objective predicts no motion codes."""
        if not loaded.config.objective.generates:
            kind = loaded.config.objective.kind
            remedy = "Its latent space can be probed; to generate, train with masked or next-token prediction from it."
            raise UserError("objective", kind, "one that predicts motion codes", remedy)
        self.settings = settings or GenerationConfig()
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.config, self.assets = loaded.config, loaded.assets
        self.learner = loaded.learner.eval().to(self.device)
        self.motion = loaded.assets.motion
        self.passes = 0
        """Forward passes of the backbone so far."""

    @classmethod
    def open(
        cls,
        uri: str,
        settings: GenerationConfig | None = None,
        device: torch.device | None = None,
        options: StorageOptions | None = None,
    ) -> Generator:
        """Load a checkpoint folder, local or s3://. Raises `CheckpointError` as `checkpoint.load` does."""
        return cls(checkpoint.load(uri, options), settings, device)

    def generate(
        self,
        image: Picture,
        instruction: str,
        seconds: float,
        hands: str | Sequence[Hand] = "right",
    ) -> Motion:
        """Motion that follows an instruction from a picture.

        `seconds` of model time, whole ones (a rest is dropped); `hands`: "left", "right", "both" or `Hand`s. The picture is squashed to
        the model's square as in training. Raises `UserError` for less than a second, a blank instruction, or no hand.
        """
        chosen = _hands(hands)
        chunks = int(np.floor(seconds / CHUNK_SECONDS + 1e-6))
        if chunks < 1:
            raise UserError("seconds", seconds, f"at least {CHUNK_SECONDS:g}, one chunk")
        rgb = _rgb(image)
        key = hashlib.blake2b(rgb.tobytes() + instruction.encode(), digest_size=8).hexdigest()
        text = words(instruction, chunks, chosen)
        return self.batch([Prompt(key, text, chosen, chunks, self.see(rgb))])[0]

    def see(self, rgb: np.ndarray) -> Visuals:
        """What the model sees of a picture (H, W, 3) uint8."""
        spec = self.assets.spec
        image = _squashed(rgb, spec.image_size)
        frames = _squashed(rgb, spec.frame_size)[None] if self.config.objective.layout.frames else None
        return Visuals(image, frames=frames)

    @torch.no_grad()
    def batch(self, prompts: Sequence[Prompt], watch: Watch | None = None) -> list[Motion]:
        """Motion of every prompt, in order. It does not depend on what else is in the batch, but for rounding."""
        if not prompts:
            return []
        layout, vocab = self.config.objective.layout, self.assets.spec.vocab
        decode = decode_masked if layout.bidirectional else decode_causal
        laid = [lay_out(prompt, self.assets, layout) for prompt in prompts]
        batch = to_device(collate(laid, packing=False, max_tokens=self.config.data.max_tokens), self.device)
        precision = self.config.train.precision if self.device.type == "cuda" else "fp32"
        made = _Made(prompts, self.motion)
        with autocast(self.device, precision):
            extra = self.learner.objective.extra(batch, self.learner.features(batch))
            slots = [prompt.slots for prompt in prompts]
            prefix, starts = _places(batch, vocab.mot_open, [len(s) for s in slots])
            context = Context(self.learner.vla, batch["images"])
            pending, rows = Piece.cut(batch, extra, prefix), torch.arange(len(prompts), device=self.device)
            for number in range(starts.shape[1]):
                going = (starts[rows, number] >= 0).nonzero()[:, 0]
                if len(going) < len(rows):
                    context, pending, rows = self._fewer(context, going), pending.take(going), rows[going]
                index = starts[rows, number, None] + torch.arange(vocab.chunk_tokens + 2, device=self.device)
                mine = {name: column[rows] for name, column in batch.items() if column.shape[:2] == batch["ids"].shape}
                chunk = Piece.cut(mine, None if extra is None else extra[rows], index)
                keys = [prompts[int(row)].key for row in rows]
                codes = decode(Job(context, pending, chunk, keys, number, self.settings, watch))
                ids, features = self._consensus(codes)
                made.put(rows.tolist(), [slots[int(row)][number] for row in rows], ids, features)
                finished = chunk.columns["ids"].clone()
                finished[:, 1:-1] = vocab.text + ids
                pending = chunk.with_ids(finished)
        self.passes += context.passes
        return made.motions()

    def _fewer(self, context: Context, going: Tensor) -> Context:
        """The context of the rows that have more chunks."""
        fewer = context.take(going)
        fewer.passes = context.passes
        return fewer

    def _consensus(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (E, B, K) of the members -> ids (B, K) that later chunks see, and features (B, 15, 99).

        Several motions are averaged and the mean is tokenised again, so that later chunks build on what is returned.
        """
        ids = codes.cpu() + self.motion.token_slots * self.motion.codes
        features = self.motion.decode(ids.flatten(0, 1)).unflatten(0, ids.shape[:2])
        mean = mean_motion(features)
        kept = ids[0] if len(ids) == 1 else self.motion.encode(mean)
        return kept.to(self.device), mean


class _Made:
    """Chunks as they come, by row."""

    def __init__(self, prompts: Sequence[Prompt], tokenizer: MotionTokenizer) -> None:
        self.prompts = prompts
        self.features = [np.zeros((2, p.chunks, CHUNK_FRAMES, FEATURE_DIM), np.float32) for p in prompts]
        self.ids = [np.zeros((2, p.chunks, tokenizer.K), np.int64) for p in prompts]
        for prompt, ids, features in zip(prompts, self.ids, self.features, strict=True):
            given = prompt.given.shape[1]
            for hand in prompt.hands if given else ():
                ids[hand, :given] = prompt.given[hand]
                features[hand, :given] = tokenizer.decode(torch.from_numpy(prompt.given[hand])).numpy()

    def put(self, rows: list[int], slots: list[tuple[int, int]], ids: Tensor, features: Tensor) -> None:
        for row, (time, hand), mine, motion in zip(rows, slots, ids.cpu().numpy(), features.cpu().numpy(), strict=True):
            self.ids[row][hand, time] = mine
            self.features[row][hand, time] = motion

    def motions(self) -> list[Motion]:
        flat = (features.reshape(2, -1, FEATURE_DIM) for features in self.features)
        return [Motion(p.hands, motion, ids) for p, motion, ids in zip(self.prompts, flat, self.ids, strict=True)]


def _places(batch: dict[str, Tensor], mot_open: int, counts: list[int]) -> tuple[Tensor, Tensor]:
    """Token indices of each row's prefix (B, L) and of its chunks' beginnings (B, J), both filled up with -1."""
    ids = batch["ids"]
    starts = torch.full((len(ids), max(counts)), -1, device=ids.device)
    for row, count in enumerate(counts):
        starts[row, :count] = (ids[row] == mot_open).nonzero()[-count:, 0]
    index = torch.arange(int(starts[:, 0].max()), device=ids.device).expand(len(ids), -1)
    return torch.where(index < starts[:, :1], index, -1), starts


def _hands(hands: str | Sequence[Hand]) -> tuple[Hand, ...]:
    if not isinstance(hands, str):
        return tuple(sorted(Hand(h) for h in hands))
    if hands == "both":
        return tuple(Hand)
    if hands not in HAND_NAMES:
        raise UserError("hands", hands, "left, right or both")
    return (Hand(HAND_NAMES.index(hands)),)


def _rgb(image: Picture) -> np.ndarray:
    """(H, W, 3) uint8, upright."""
    if isinstance(image, (str, os.PathLike)):
        try:
            image = Image.open(Path(image))
        except OSError as error:
            raise UserError("image", str(image), f"a picture file ({error})") from error
    if isinstance(image, Image.Image):
        image = np.asarray((ImageOps.exif_transpose(image) or image).convert("RGB"))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError("image", (str(image.dtype), image.shape), "uint8 (H, W, 3) RGB")
    return image


def _squashed(rgb: np.ndarray, side: int) -> np.ndarray:
    """(3, side, side) uint8, by the same scaler as training's frames."""
    import av

    from jala_ray.video.picture import Picture as Shown

    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24")
    return Shown(frame, 1.0, indexed_turns=0).rgb((side, side)).transpose(2, 0, 1).copy()


def generate(
    checkpoint_uri: str,
    image: Picture,
    instruction: str,
    seconds: float,
    hands: str | Sequence[Hand] = "right",
    settings: GenerationConfig | None = None,
) -> Motion:
    """Motion from a checkpoint folder (local or s3://), a picture and an instruction; see `Generator.generate`.

    Loads the checkpoint anew: for several calls keep a `Generator`.
    """
    return Generator.open(checkpoint_uri, settings).generate(image, instruction, seconds, hands)
