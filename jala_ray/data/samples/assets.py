"""What turns text, motion and pictures into tokens: fixed at a run's start, read by every data worker, kept in checkpoints."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jala_ray import storage
from jala_ray.config.backbones import DEFAULT
from jala_ray.data.samples import replay
from jala_ray.data.samples.replay import Replay
from jala_ray.data.samples.signals import Statistics
from jala_ray.models.inverse_dynamics import Teacher
from jala_ray.models.text import TextTokenizer
from jala_ray.models.vocab import Vocab
from jala_ray.storage import StorageOptions
from jala_ray.tokenizer.model import MotionTokenizer
from jala_ray.types import CheckpointError

ASSET_FOLDERS = ("text_tokenizer", "motion_tokenizer")
STATISTICS = "signals.json"


@dataclass(frozen=True)
class SequenceSpec:
    """The numbers that a data worker needs of the model."""

    vocab: Vocab
    image_tokens: int
    image_size: int
    """Side in pixels of the backbone's tile."""
    frame_size: int
    """Side in pixels of the frozen encoder's frames."""
    backbone: str = DEFAULT
    """Kind of the backbone, whose chat template is written."""


@dataclass
class Assets:
    text: TextTokenizer
    motion: MotionTokenizer | None
    """None for objectives without motion codes."""
    spec: SequenceSpec
    statistics: Statistics | None = None
    """Of the signals that the objective reads."""
    teacher: Teacher | None = None
    """Of an objective that has one."""
    replays: Mapping[str, Replay] = field(default_factory=dict)
    """Of every robot that a policy learned."""

    @property
    def tokenizer(self) -> MotionTokenizer:
        """The motion tokenizer of a model that has one. Raises `CheckpointError` where there is none."""
        if self.motion is None:
            raise CheckpointError(
                "motion tokenizer", None, "a model that was trained with one", "Its objective has no motion codes."
            )
        return self.motion

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.text.save(folder / "text_tokenizer")
        if self.motion is not None:
            self.motion.save(folder / "motion_tokenizer")
        if self.statistics is not None:
            (folder / STATISTICS).write_text(self.statistics.to_json())
        if self.teacher is not None:
            self.teacher.save(folder)
        if self.replays:
            replay.save(self.replays, folder)
        (folder / "sequence.json").write_text(json.dumps(dataclasses.asdict(self.spec), indent=1))

    @classmethod
    def open(cls, uri: str, options: StorageOptions | None = None) -> Assets:
        """Load from a local folder or, through a download that is verified, from s3://."""
        if not storage.is_s3(uri):
            return cls.load(storage.local_path(uri))
        with storage.scratch("assets") as scratch:
            storage.download_dir(uri, scratch / "assets", options)
            return cls.load(scratch / "assets")

    @classmethod
    def load(cls, folder: str | Path) -> Assets:
        """Raises `CheckpointError` when the folder lacks a part."""
        folder = Path(folder)
        spec = read_spec(folder)
        names = ASSET_FOLDERS if spec.vocab.slots else ASSET_FOLDERS[:1]
        _refuse_missing(folder, (*names, "sequence.json"))
        motion, statistics = None, None
        if spec.vocab.slots:
            motion = MotionTokenizer.load(folder / "motion_tokenizer").eval().requires_grad_(False)
        if (folder / STATISTICS).exists():
            statistics = Statistics.from_json((folder / STATISTICS).read_text())
        text = TextTokenizer.from_pretrained(str(folder / "text_tokenizer"), kind=spec.backbone)
        return cls(text, motion, spec, statistics, Teacher.load(folder), replay.load(folder))


def read_spec(folder: Path) -> SequenceSpec:
    """Raises `CheckpointError` where it is missing."""
    _refuse_missing(folder, ("sequence.json",))
    fields = json.loads((folder / "sequence.json").read_text())
    vocab = fields.pop("vocab")
    vocab["token_slots"] = tuple(vocab["token_slots"])
    return SequenceSpec(Vocab(**vocab), **fields)


def _refuse_missing(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        if not (folder / name).exists():
            expected = f"{', '.join(ASSET_FOLDERS)} and sequence.json"
            raise CheckpointError("assets", str(folder), expected, f"{name} is missing.")


def tokenizer_key(assets: Assets) -> str:
    """Digest of the motion tokenizer's weights: codes from another tokenizer mean other motions. "none" without one."""
    return "none" if assets.motion is None else motion_key(assets.motion)


def motion_key(motion: MotionTokenizer) -> str:
    """The same of a motion tokenizer alone."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(motion.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
