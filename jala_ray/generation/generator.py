"""A checkpoint that generates motion, one picture at a time or in batches (method.md 7)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import av
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from jala_ray import storage
from jala_ray.batch import Batch
from jala_ray.config import GenerationConfig
from jala_ray.data.samples.collate import collate
from jala_ray.data.samples.hand_recipe import HandRecipe
from jala_ray.data.samples.source import Pictures, Sample
from jala_ray.generation.context import Context, Piece
from jala_ray.generation.decoding import Job, Watch, decode_causal, decode_masked
from jala_ray.generation.motion import Motion, mean_motion
from jala_ray.generation.prompt import Prompt, lay_out, lay_out_description, words
from jala_ray.generation.text import Said, decode_text
from jala_ray.generation.text import Watch as TextWatch
from jala_ray.storage import StorageOptions
from jala_ray.tokenizer.model import MotionTokenizer
from jala_ray.training import checkpoint
from jala_ray.training.device import autocast, compiles, to_device
from jala_ray.types import CHUNK_FRAMES, FEATURE_DIM, HAND_NAMES, MODEL_FPS, Hand, UserError
from jala_ray.video.decode import VideoReader
from jala_ray.video.picture import Picture as Shown

Picture = str | os.PathLike[str] | Image.Image | np.ndarray
"""A picture's or video's file, a PIL image, or (H, W, 3) uint8 RGB."""


class Generator:
    """Holds a loaded checkpoint on a device. `generate` is for people, `batch` for prompts."""

    def __init__(
        self,
        loaded: checkpoint.Loaded,
        settings: GenerationConfig | None = None,
        device: torch.device | None = None,
        compile: Literal["auto", "on", "off"] = "auto",
    ) -> None:
        """`compile`: the language blocks of passes over a cache, which pays for many clips; auto: on a GPU.

        Raises `UserError` for a checkpoint whose objective predicts no motion codes.
        """
        if not loaded.config.objective.generates:
            kind = loaded.config.objective.kind
            remedy = "Its latent space can be probed; to generate, train with masked or next-token prediction from it."
            raise UserError("objective", kind, "one that predicts motion codes", remedy)
        self.settings = settings or GenerationConfig()
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.config, self.assets = loaded.config, loaded.assets
        self.learner = loaded.learner.eval().to(self.device)
        if compiles(compile, self.device):
            self.learner.vla.backbone.compile_decoding()
        self.motion = loaded.assets.tokenizer
        self.recipe = HandRecipe(loaded.config, loaded.assets)
        self.options: StorageOptions | None = None
        """How s3:// addresses of videos are reached."""
        self.passes = 0
        """Forward passes of the backbone so far."""

    @classmethod
    def open(
        cls,
        uri: str,
        settings: GenerationConfig | None = None,
        device: torch.device | None = None,
        options: StorageOptions | None = None,
        compile: Literal["auto", "on", "off"] = "auto",
    ) -> Generator:
        """Load a checkpoint folder, a run folder's newest, or an export; local or s3://. Raises `CheckpointError` as `checkpoint.load`."""
        made = cls(checkpoint.load(uri, options), settings, device, compile)
        made.options = options
        return made

    def generate(
        self,
        image: Picture,
        instruction: str,
        seconds: float,
        hands: str | Sequence[Hand] = "right",
        start_s: float = 0.0,
    ) -> Motion:
        """Motion that follows an instruction from a picture, or from a video's frame at `start_s` (presentation time, seconds).

        `seconds` of model time: the model generates whole ones, what goes beyond is cut. `hands`: "left", "right", "both" or `Hand`s.
        The picture is squashed to the model's square as in training. No camera is asked for: the motion is in metres in the camera frame
        of the picture, and a camera is needed only to draw it (`jala_ray.draw_motion`).

        Raises `UserError` for no time, a blank instruction, or no hand; `VideoError` for a file that is neither picture nor video.
        """
        frames, chunks = length(seconds)
        chosen = chosen_hands(hands)
        text = words(instruction, chunks, chosen)
        pictures, pixels = self.look(image, start_s)
        key = hashlib.blake2b(pixels + instruction.encode(), digest_size=8).hexdigest()
        return self.batch([Prompt(key, text, chosen, chunks, pictures)])[0].first(frames)

    def look(self, image: Picture, start_s: float = 0.0) -> tuple[Pictures, bytes]:
        """What the model sees of a picture, or of a video's frame at `start_s`; and bytes that stand for the picture."""
        if (rgb := read_picture(image)) is not None:
            return self.see(rgb), rgb.tobytes()
        with VideoReader(os.fspath(cast(str, image)), options=self.options) as reader:
            pictures = reader.each([start_s], self._pictures)[0]
        return pictures, pictures["image"].tobytes()

    def see(self, rgb: np.ndarray) -> Pictures:
        """What the model sees of a picture (H, W, 3) uint8."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24")
        return self._pictures(Shown(frame, 1.0, indexed_turns=0))

    def _pictures(self, picture: Shown) -> Pictures:
        """By the same scaler as training's frames."""
        spec = self.assets.spec
        image, frame = (
            picture.rgb((side, side)).transpose(2, 0, 1).copy() for side in (spec.image_size, spec.frame_size)
        )
        return {"image": image} | ({"frames": frame[None]} if self.recipe.layout.frames else {})

    @torch.no_grad()
    def batch(self, prompts: Sequence[Prompt], watch: Watch | None = None) -> list[Motion]:
        """Motion of every prompt, in order. It does not depend on what else is in the batch, but for rounding."""
        if not prompts:
            return []
        vocab = self.assets.spec.vocab
        decode = decode_masked if self.recipe.layout.bidirectional else decode_causal
        laid = [lay_out(prompt, self.recipe) for prompt in prompts]
        batch = to_device(collate(laid, packing=False), self.device)
        made = _Made(prompts, self.motion)
        with autocast(self.device, self._precision):
            extra = self.learner.objective.extra(batch, self.learner.features(batch))
            slots = [prompt.slots for prompt in prompts]
            prefix, starts = _places(batch, vocab.mot_open, [len(s) for s in slots])
            context = Context(self.learner.vla, batch.images)
            whole = self._whole(batch, extra)
            pending, rows = whole.at(prefix), torch.arange(len(prompts), device=self.device)
            for number in range(starts.shape[1]):
                going = (starts[rows, number] >= 0).nonzero()[:, 0]
                if len(going) < len(rows):
                    context, pending, rows = context.fewer(going), pending.take(going), rows[going]
                index = starts[rows, number, None] + torch.arange(vocab.chunk_tokens + 2, device=self.device)
                chunk = whole.take(rows).at(index)
                keys = [prompts[int(row)].key for row in rows]
                codes = decode(Job(context, pending, chunk, keys, number, self.settings, watch))
                ids, features = self._consensus(codes)
                made.put(rows.tolist(), [slots[int(row)][number] for row in rows], ids, features)
                finished = chunk.ids.clone()
                finished[:, 1:-1] = vocab.text + ids
                pending = chunk.with_ids(finished)
        self.passes += context.passes
        return made.motions()

    @torch.no_grad()
    def describe(
        self, clips: Sequence[tuple[Sample, Pictures]], most: int = 64, watch: TextWatch | None = None
    ) -> list[Said]:
        """What each clip's labelled motion and first frame show, in words, of at most `most` tokens; greedy, in order.

        Laid out as the description task of training, by its first template. Does not depend on what else is in the batch, but for rounding.
        """
        if not clips:
            return []
        text = self.assets.text
        laid = [lay_out_description(sample, pictures, self.recipe) for sample, pictures in clips]
        batch = to_device(collate(laid, packing=False), self.device)
        with autocast(self.device, self._precision):
            extra = self.learner.objective.extra(batch, self.learner.features(batch))
            lengths = torch.tensor([len(one) for one in laid], device=self.device)
            index = torch.arange(batch.ids.shape[1], device=self.device).expand(len(laid), -1)
            prompt = self._whole(batch, extra).at(torch.where(index < lengths[:, None], index, -1))
            context = Context(self.learner.vla, batch.images)
            said, ended = decode_text(context, prompt, lengths, end=text.assistant_close()[0], most=most, watch=watch)
        self.passes += 1 + max(map(len, said))
        return [Said(text.decode(ids), whole) for ids, whole in zip(said, ended, strict=True)]

    def _whole(self, batch: Batch, extra: Tensor | None) -> Piece:
        return Piece.whole(batch, self.learner.vla.backbone.positions(batch.position, batch.image_k), extra)

    @property
    def _precision(self) -> Literal["bf16", "fp32"]:
        return self.config.train.precision if self.device.type == "cuda" else "fp32"

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


def _places(batch: Batch, mot_open: int, counts: list[int]) -> tuple[Tensor, Tensor]:
    """Token indices of each row's prefix (B, L) and of its chunks' beginnings (B, J), both filled up with -1."""
    ids = batch.ids
    starts = torch.full((len(ids), max(counts)), -1, device=ids.device)
    for row, count in enumerate(counts):
        starts[row, :count] = (ids[row] == mot_open).nonzero()[-count:, 0]
    index = torch.arange(int(starts[:, 0].max()), device=ids.device).expand(len(ids), -1)
    return torch.where(index < starts[:, :1], index, -1), starts


def length(seconds: float) -> tuple[int, int]:
    """(frames, chunks) of `seconds` of model time, both rounded up."""
    if not 0 < seconds < np.inf:
        raise UserError("seconds", seconds, "a time above 0")
    frames = int(np.ceil(seconds * MODEL_FPS - 1e-6))
    return frames, -(-frames // CHUNK_FRAMES)


def chosen_hands(hands: str | Sequence[Hand]) -> tuple[Hand, ...]:
    """`left`, `right`, `both` or `Hand`s, in order. Raises `UserError`."""
    if not isinstance(hands, str):
        return tuple(sorted(Hand(h) for h in hands))
    if hands == "both":
        return tuple(Hand)
    if hands not in HAND_NAMES:
        raise UserError("hands", hands, "left, right or both")
    return (Hand(HAND_NAMES.index(hands)),)


def read_picture(image: Picture) -> np.ndarray | None:
    """(H, W, 3) uint8, upright; None for a file that is no picture, and may be a video."""
    if isinstance(image, (str, os.PathLike)):
        if storage.is_s3(image):
            return None
        if not Path(storage.local_path(image)).is_file():
            raise UserError("image", str(image), "the file of a picture or video")
        try:
            image = Image.open(storage.local_path(image))
        except OSError:
            return None
    if isinstance(image, Image.Image):
        image = np.asarray((ImageOps.exif_transpose(image) or image).convert("RGB"))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError("image", (str(image.dtype), image.shape), "uint8 (H, W, 3) RGB")
    return image


def generate(
    checkpoint_uri: str,
    image: Picture,
    instruction: str,
    seconds: float,
    hands: str | Sequence[Hand] = "right",
    settings: GenerationConfig | None = None,
    start_s: float = 0.0,
) -> Motion:
    """Motion from a checkpoint, a picture or a video's frame at `start_s`, and an instruction; see `Generator.generate`.

    `checkpoint_uri`: a checkpoint folder, a run folder (its newest) or an export; local or s3://. Loads it anew: for several calls keep
    a `Generator`.
    """
    return Generator.open(checkpoint_uri, settings, compile="off").generate(image, instruction, seconds, hands, start_s)
