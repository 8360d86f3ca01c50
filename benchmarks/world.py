"""A manifest for measuring: prepared clips at real sizes, a motion tokenizer of the paper's size, and as many rows as asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from jala_ray import storage
from jala_ray.config import EncoderConfig, RunConfig, TokenizerConfig, VisionSizes
from jala_ray.data.cache.making import Contents, begin
from jala_ray.data.manifest.files import rows_file
from jala_ray.data.manifest.table import Manifest, write_manifest
from jala_ray.data.samples.assets import Assets, SequenceSpec
from jala_ray.models.text import TextTokenizer
from jala_ray.models.vocab import Vocab
from jala_ray.parsing import override
from jala_ray.presets import BASE
from jala_ray.storage import StorageOptions
from jala_ray.tokenizer.model import MotionTokenizer
from jala_ray.types import Clip, HandState, HandTrack, TaskType
from jala_ray.video.frames import index_boundaries
from jala_ray.video.packets import PacketScan
from jala_ray.video.write import write_mp4

VIDEOS, SECONDS, SIZE = 24, 10, (256, 456)
SHARES: dict[TaskType, float] = {"generation": 0.424, "continuation": 0.155, "description": 0.129, "pure_video": 0.292}
"""The papers' mixture (method.md 4)."""


def config(root: Path, manifest: str, batch: int, rows: int | None = None) -> RunConfig:
    """The paper's input sizes: a tile of 448, frames of 224 in 196 patches of width 1024, 128 tokens per chunk."""
    values = {"train.batch": batch, "storage.root": str(root), "data.manifest": manifest, "motion_tokenizer": "none"}
    made = override(replace(BASE, name="benchmark"), values | {"data.epoch_rows": rows, "train.micro_batch": batch})
    sizes = VisionSizes(hidden=1024, layers=1, heads=16, mlp=1024, patch=16)  # only the features' size matters
    encoder = EncoderConfig("dinov3", image_size=224, sizes=sizes)
    return replace(made, model=replace(made.model, encoder=encoder))


def assets(folder: Path) -> str:
    """Untrained tokenizers of full size; what they cost does not depend on training."""
    motion = MotionTokenizer(TokenizerConfig()).eval()
    text = TextTokenizer.train(["Use the hands as the activity in view requires."] * 4, 1024)
    vocab = Vocab(text.vocab_size, motion.n_slots, motion.codes, tuple(motion.token_slots.tolist()))
    Assets(text, motion, SequenceSpec(vocab, 256, 448, 224)).save(folder)
    return str(folder)


def videos(folder: Path, scene: int = 0) -> list[Path]:
    """Prepared clips: 15 frames per second, a keyframe per second. A textured scene that pans at another speed in each."""
    rng = np.random.default_rng(scene)
    made = []
    for number in range(VIDEOS):
        path = folder / "videos" / f"{number:03d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        frames, speed = 15 * SECONDS + 1, 1 + number % 4
        cells = rng.integers(0, 256, (SIZE[0] // 8 + 1, (SIZE[1] + frames * speed) // 8 + 1, 3))
        image = np.kron(cells, np.ones((8, 8, 1), np.uint8)).astype(np.uint8)
        shots = (np.ascontiguousarray(image[: SIZE[0], speed * i : speed * i + SIZE[1]]) for i in range(frames))
        write_mp4(path, shots, 15, gop=15, crf=23)
        made.append(path)
    return made


def clip(number: int, task: TaskType, video: Path) -> Clip:
    """A clip of the whole video, two labelled hands unless the task is pure video."""
    frames = 30 * SECONDS
    rng = np.random.default_rng(number)
    wave = np.cumsum(rng.normal(0, 0.01, (2, frames, 17, 3)), axis=1).astype(np.float32)
    hands = [
        HandTrack(HandState.LABELLED, np.ones(frames, bool), wave[side, :, 1:16], wave[side, :, 0], wave[side, :, 16])
        for side in (0, 1)
    ]
    bare = task == "pure_video"
    made = Clip(
        clip_id=f"{number:08d}",
        source="ego" if bare else "lab",
        domain="wild" if bare else "lab",
        split="train",
        task_type=task,
        video_uri=str(video),
        start_s=0.0,
        end_s=float(SECONDS),
        fps=15.0,
        time_scale=1.0,
        instructions=("Use the hands as the activity in view requires.",),
        description="A hand moves over the scene.",
        camera=None,
        pose_time_s=np.zeros(0, np.float32) if bare else (np.arange(frames) / 30).astype(np.float32),
        hands=(HandTrack(HandState.UNTRACKED), HandTrack(HandState.UNTRACKED)) if bare else (hands[0], hands[1]),
    )
    return replace(made, packets=index_boundaries(PacketScan(video), made))


def cache(folder: Path, made: RunConfig, assets_folder: str, options: StorageOptions) -> str:
    """Codes and features of a manifest; first pictures stay in the videos."""
    making = begin(
        str(folder),
        Manifest(made.data.manifest, options),
        Assets.load(assets_folder),
        made.model.encoder,
        Contents("features"),
        options,
    )
    for part in making.missing():
        making.job(part)
    return making.finish(0.0)[0].path


def manifest(folder: Path, files: list[Path], shares: dict[TaskType, float] = SHARES) -> str:
    """Two rows of each video, task types in the given shares."""
    count = 2 * len(files)
    tasks = np.repeat(list(shares), [round(share * count) for share in shares.values()])
    clips = (clip(i, task, files[i % len(files)]) for i, task in enumerate(tasks.tolist()))
    return write_manifest(clips, folder).path


def uploaded(folder: Path, address: str, options: StorageOptions) -> str:
    """A copy of a manifest and its videos in a bucket."""
    clips = list(Manifest(folder))
    moved = {}
    for made in clips:
        name = Path(str(made.video_uri)).name
        if name not in moved:
            moved[name] = storage.join(address, "videos", name)
            storage.write_bytes(moved[name], Path(str(made.video_uri)).read_bytes(), options)
    there = (replace(made, video_uri=moved[Path(str(made.video_uri)).name]) for made in clips)
    return write_manifest(there, address, options=options).path


def enlarged(small: str, folder: Path, rows: int) -> str:
    """A manifest of `rows` rows whose Parquet file points again and again to the rows of a small one."""
    folder.mkdir(parents=True)
    source = Path(small) / "part-00000.parquet"
    table = pq.read_table(source)
    repeats = -(-rows // table.num_rows)
    pq.write_table(
        table.take(np.tile(np.arange(table.num_rows), repeats)[:rows]), folder / source.name, compression="zstd"
    )
    Path(rows_file(str(folder / source.name))).symlink_to(Path(rows_file(str(source))).resolve())
    return str(folder)
