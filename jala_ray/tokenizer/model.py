"""The motion tokenizer: hand features of a chunk <-> K motion ids (method.md 2).

Encoding and decoding need no library but torch.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jala_ray.config import TOKENIZER_FRAMES, TokenizerConfig
from jala_ray.parsing import from_dict
from jala_ray.tokenizer.quantizer import ResidualCodebooks
from jala_ray.types import (
    CHUNK_FRAMES,
    FEATURE_DIM,
    FINGER_DIM,
    WRIST_DIM,
    CheckpointError,
    ConfigError,
    UserError,
)

PARTS = {"wrist": WRIST_DIM, "finger": FINGER_DIM}
"""The two models and their features per frame, in the order of features and tokens."""
DILATIONS = (9, 3, 1)
FORMAT = "jala_ray.tokenizer/1"


class ResidualBlock(nn.Module):
    """x + conv1(relu(conv3_dilated(relu(x)))), (C, D, T) -> same."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.dilated = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.mix = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        conv = self.dilated
        # When the outer taps see padding alone, the middle one gives the same at a third of the work.
        only_middle = conv.dilation[0] >= x.shape[-1]
        y = F.conv1d(F.relu(x), conv.weight[..., 1:2], conv.bias) if only_middle else conv(F.relu(x))
        return x + self.mix(F.relu(y))


class PartAutoencoder(nn.Module):
    """Encoder, codebooks and decoder of one part (wrist or finger), on normalised features."""

    def __init__(self, features: int, config: TokenizerConfig) -> None:
        super().__init__()
        width = config.width
        down: list[nn.Module] = [nn.Conv1d(features, width, 3, padding=1)]
        up: list[nn.Module] = [nn.Conv1d(width, width, 3, padding=1)]
        for _ in range(2):
            down += [nn.Conv1d(width, width, 4, stride=2, padding=1)]
            down += [ResidualBlock(width, dilation) for dilation in DILATIONS]
            up += [ResidualBlock(width, dilation) for dilation in reversed(DILATIONS)]
            up += [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv1d(width, width, 3, padding=1)]
        self.encoder = nn.Sequential(*down, nn.Conv1d(width, width, 3, padding=1))
        self.decoder = nn.Sequential(*up, nn.ReLU(), nn.Conv1d(width, features, 3, padding=1))
        self.codebooks = ResidualCodebooks(width, config.groups, config.levels, config.codes)

    def to_latent(self, x: Tensor) -> Tensor:
        """x (C, 15, features), normalised -> latent vectors (C, 4, width)."""
        padded = torch.cat([x, x[:, -1:].expand(-1, TOKENIZER_FRAMES - x.shape[1], -1)], dim=1)
        return self.encoder(padded.mT).mT

    def from_latent(self, z: Tensor) -> Tensor:
        """z (C, 4, width) -> normalised features (C, 15, features); the padded frame is cropped."""
        return self.decoder(z.mT).mT[:, :CHUNK_FRAMES]


class MotionTokenizer(nn.Module):
    """Wrist and finger tokenizers with their shared id space (method.md 2).

    A token's *slot* is part * levels + level, its id slot * codes + code. The K tokens of a chunk are ordered
    by part (wrist, finger), then group, time, level; `token_slots` (K,) int64 holds the slot of every
    position.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.parts = nn.ModuleDict({name: PartAutoencoder(features, config) for name, features in PARTS.items()})
        self.register_buffer("mean", torch.zeros(FEATURE_DIM))
        self.register_buffer("std", torch.ones(FEATURE_DIM))
        self.mean: Tensor
        self.std: Tensor
        slots = torch.arange(self.n_slots).view(len(PARTS), 1, config.levels)
        slots = slots.expand(-1, config.groups * config.steps, -1).flatten()
        self.register_buffer("token_slots", slots, persistent=False)
        self.token_slots: Tensor
        self.quality: dict[str, Any] | None = None
        """The report of `jala_ray.tokenizer.quality`, if the folder this was loaded from has one."""

    @property
    def K(self) -> int:
        """Tokens per chunk: 128 by default."""
        return len(PARTS) * self.config.tokens_per_part

    @property
    def codes(self) -> int:
        """Codes a slot: 512 by default."""
        return self.config.codes

    @property
    def n_slots(self) -> int:
        """Slots, parts x levels: 16 by default."""
        return len(PARTS) * self.config.levels

    @property
    def n_ids(self) -> int:
        """Motion ids, slots x codes: 8192 by default."""
        return self.n_slots * self.config.codes

    def set_stats(self, mean: Tensor, std: Tensor) -> None:
        """Normalise features as (x - mean) / std from now on; both (99,), std positive. Saved with the
        weights."""
        for name, value in (("mean", mean), ("std", std)):
            if tuple(value.shape) != (FEATURE_DIM,) or not torch.isfinite(value).all():
                raise UserError(f"tokenizer {name}", tuple(value.shape), f"{FEATURE_DIM} finite numbers")
        if not (std > 0).all():
            raise UserError(
                "tokenizer std",
                float(std.min()),
                "positive numbers",
                "Use FeatureStats.std, which has a floor.",
            )
        self.mean.copy_(mean)
        self.std.copy_(std)

    def normalise(self, features: Tensor) -> dict[str, Tensor]:
        """Raw features (C, 15, 99) -> {part: (C, 15, features of the part)}, normalised."""
        if features.ndim != 3 or features.shape[1:] != (CHUNK_FRAMES, FEATURE_DIM):
            raise UserError(
                "features",
                tuple(features.shape),
                f"(C, {CHUNK_FRAMES}, {FEATURE_DIM}): chunks, frames, features",
                "jala_ray.hands.resample.chunk_features makes them.",
            )
        x = (features.to(self.mean) - self.mean) / self.std
        return dict(zip(PARTS, x.split(list(PARTS.values()), dim=-1), strict=True))

    def unnormalise(self, parts: dict[str, Tensor]) -> Tensor:
        """{part: (C, 15, features of the part)} -> raw features (C, 15, 99)."""
        return torch.cat([parts[name] for name in PARTS], dim=-1) * self.std + self.mean

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        """Raw features (C, 15, 99) (metres and 6-D rotations) -> ids (C, K) int64 in [0, n_ids).

        Raises UserError when the shape is wrong or a feature is not finite.
        """
        finite = torch.isfinite(features)
        if not finite.all():
            chunk, frame, feature = (~finite).nonzero()[0].tolist() if features.ndim == 3 else (0, 0, 0)
            raise UserError(
                f"features[chunk {chunk}, frame {frame}, feature {feature}]",
                float(features[~finite][0]),
                "finite numbers",
                "Encode labelled chunks only.",
            )
        with torch.autocast(self.mean.device.type, enabled=False):
            codes = []
            for name, x in self.normalise(features).items():
                part = self.part(name)
                codes.append(part.codebooks.encode(part.to_latent(x)).flatten(1))
        return torch.cat(codes, dim=1) + self.token_slots * self.codes

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """ids (C, K) -> raw features (C, 15, 99) float32.

        Raises UserError when the shape is wrong or an id lies outside its position's slot.
        """
        return self.from_codes(self._codes(ids.to(self.mean.device)))

    def from_codes(self, codes: Tensor) -> Tensor:
        """`decode` of codes (C, K) as `_codes` gives them, which nobody checks here."""
        config = self.config
        with torch.autocast(self.mean.device.type, enabled=False):
            parts = {}
            for name, flat in zip(PARTS, codes.chunk(len(PARTS), dim=1), strict=True):
                part = self.part(name)
                grid = flat.unflatten(1, (config.groups, config.steps, config.levels))
                parts[name] = part.from_latent(part.codebooks.decode(grid))
        return self.unnormalise(parts)

    def _codes(self, ids: Tensor) -> Tensor:
        if ids.ndim != 2 or ids.shape[1] != self.K or ids.is_floating_point():
            raise UserError("motion ids", f"{tuple(ids.shape)} {ids.dtype}", f"integers of shape (C, K = {self.K})")
        codes = ids - self.token_slots * self.codes
        wrong = ((codes < 0) | (codes >= self.codes)).nonzero()
        if len(wrong):
            chunk, position = wrong[0].tolist()
            slot = int(self.token_slots[position])
            raise UserError(
                f"motion id at position {position} of chunk {chunk}",
                int(ids[chunk, position]),
                f"an id in [{slot * self.codes}, {(slot + 1) * self.codes}) (slot {slot})",
                f"{len(wrong)} of {ids.numel()} ids are outside; see `token_slots`.",
            )
        return codes

    def part(self, name: str) -> PartAutoencoder:
        """The model of `wrist` or `finger`."""
        part = self.parts[name]
        assert isinstance(part, PartAutoencoder)
        return part

    def save(self, folder: str | Path, quality: dict[str, Any] | None = None) -> None:
        """Write config.json, model.safetensors and, if there is a report, quality.json to a local folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        safetensors.torch.save_file(tensors, folder / "model.safetensors")
        quality = self.quality if quality is None else quality
        if quality is not None:
            (folder / "quality.json").write_text(json.dumps(quality, indent=2))
        config = {"format": FORMAT, "config": dataclasses.asdict(self.config)}
        (folder / "config.json").write_text(json.dumps(config, indent=2))

    @classmethod
    def load(cls, folder: str | Path) -> MotionTokenizer:
        """Read a folder written by `save`, onto the CPU, in evaluation mode.

        Raises CheckpointError: a file is missing or damaged, a setting unknown, a tensor does not fit.
        """
        folder = Path(folder)
        config = _read_config(folder / "config.json")
        tokenizer = cls(config)
        weights = folder / "model.safetensors"
        try:
            tensors = safetensors.torch.load_file(weights)
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(
                "motion tokenizer weights",
                str(weights),
                f"a readable safetensors file ({error})",
                "Save it again.",
            ) from error
        expected = {name: tuple(value.shape) for name, value in tokenizer.state_dict().items()}
        found = {name: tuple(value.shape) for name, value in tensors.items()}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise CheckpointError(
                    f"tensor {name} of {weights}",
                    found.get(name, "nothing"),
                    f"shape {expected[name]} by config.json" if name in expected else "no such tensor by config.json",
                    "config.json and model.safetensors are not from the same tokenizer.",
                )
        tokenizer.load_state_dict(tensors)
        report = folder / "quality.json"
        if report.exists():
            tokenizer.quality = _read_json(report)
        return tokenizer.eval()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise CheckpointError(
            "motion tokenizer folder",
            str(path.parent),
            f"a folder with {path.name} ({error.strerror})",
            "Train one with `jala tokenizer`.",
        ) from error
    except ValueError as error:
        raise CheckpointError(str(path), str(error), "valid JSON", "Save the tokenizer again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(str(path), type(content).__name__, "a JSON object")
    return content


def _read_config(path: Path) -> TokenizerConfig:
    content = _read_json(path)
    if content.get("format") != FORMAT:
        raise CheckpointError(f"format of {path}", content.get("format"), repr(FORMAT), "Is this a motion tokenizer?")
    values = content.get("config")
    if not isinstance(values, dict):
        raise CheckpointError(f"config of {path}", values, "an object with the tokenizer's settings")
    try:
        return from_dict(TokenizerConfig, values)
    except ConfigError as error:
        raise CheckpointError(f"config of {path}", values, f"valid settings ({error})") from error
