"""A features file: everything of a manifest that training reads, in one safetensors file, for machines without a cluster.

It holds, for each row, v_1 for the backbone, the frozen encoder's features of all boundary frames (or of the pairs (v_t, v_{t+delta})
and (v_t, v_t)), and the motion codes.
Reading it needs torch, numpy and safetensors only. It is bound to the encoder and to the motion tokenizer that made it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from jala_ray.config import DataConfig
from jala_ray.data.assets import Assets
from jala_ray.data.source import BadRow, Example, Source, Visuals
from jala_ray.models.encoders import FrameEncoder
from jala_ray.types import DOMAINS, Domain, HandState, ManifestError, Split, UserError

FORMAT = "jala_ray.features/2"


def tokenizer_key(assets: Assets) -> str:
    """Digest of the motion tokenizer's weights: codes from another tokenizer mean other motions."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(assets.motion.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def export_features(
    source: Source,
    rows: Sequence[tuple[int, Split, Domain]],
    assets: Assets,
    encoder: FrameEncoder,
    path: str | Path,
) -> list[BadRow]:
    """Write `path` for the given manifest rows; returns the rows that could not be read, which are left out.

    Pictures are encoded on the device that holds `encoder`.
    """
    device = next(encoder.parameters()).device
    meta: list[dict[str, Any]] = []
    tensors: dict[str, list[torch.Tensor]] = {
        "images": [],
        "codes": [],
        "labelled": [],
        "features": [],
        "still_features": [],
        "first_features": [],
    }
    bad: list[BadRow] = []
    for row, split, domain in rows:
        (example,) = source.examples([row])
        if isinstance(example, BadRow):
            bad.append(example)
            continue
        n = example.labelled.shape[1]
        try:
            pictures = source.visuals(row, list(range(n + 1)), [])
        except UserError as error:
            bad.append(BadRow(example.clip_id, error))
            continue
        assert pictures.frames is not None
        frames = torch.from_numpy(pictures.frames).to(device)
        if encoder.pairs:
            # A still pair is a frame twice; that of the first frame is what LSP reads.
            stills = encoder(torch.stack([frames[:-1], frames[:-1]], dim=1)).cpu()
            tensors["still_features"].append(stills)
            tensors["first_features"].append(stills[:1])
            tensors["features"].append(encoder(torch.stack([frames[:-1], frames[1:]], dim=1)).cpu())
        else:
            tensors["features"].append(encoder(frames).cpu())
        tensors["images"].append(torch.from_numpy(pictures.image)[None])
        tensors["codes"].append(torch.from_numpy(example.codes).transpose(0, 1))
        tensors["labelled"].append(torch.from_numpy(example.labelled).T)
        meta.append(
            {
                "clip_id": example.clip_id,
                "split": split,
                "domain": domain,
                "task": example.task,
                "states": [int(state) for state in example.states],
                "chunks": n,
                "instructions": list(example.instructions),
                "description": example.description,
            }
        )
    if not meta:
        raise ManifestError("rows", len(rows), "at least one readable row", str(bad[0].error) if bad else "")
    packed = {name: torch.cat(parts).contiguous() for name, parts in tensors.items() if parts}
    packed["meta"] = torch.frombuffer(bytearray(json.dumps(meta).encode()), dtype=torch.uint8)
    keys = {
        "format": FORMAT,
        "encoder": encoder.key,
        "tokenizer": tokenizer_key(assets),
        "pairs": str(encoder.pairs),
    }
    safetensors.torch.save_file(packed, path, metadata=keys)
    return bad


class FeatureSource:
    """`Source` over a features file, held in memory.

    Raises `ManifestError` when the file is not one, or was made with another encoder or motion tokenizer.
    """

    def __init__(self, path: str | Path, assets: Assets, encoder_key: str) -> None:
        self.assets = assets
        if not Path(path).is_file():
            raise ManifestError("data.features", str(path), "a features file", "Make one with jobs/export_features.py.")
        with safetensors.safe_open(str(path), "pt") as stored:
            keys = stored.metadata() or {}
            wanted = {"format": FORMAT, "encoder": encoder_key, "tokenizer": tokenizer_key(assets)}
            for name, value in wanted.items():
                if keys.get(name) != value:
                    remedy = "The features are stale; export them again with this encoder and tokenizer."
                    raise ManifestError(f"data.features {name}", keys.get(name), value, remedy)
            self.tensors = {name: stored.get_tensor(name).numpy() for name in stored.keys()}  # noqa: SIM118
        self.pairs = keys["pairs"] == "True"
        self.meta: list[dict[str, Any]] = json.loads(bytes(self.tensors["meta"]))
        chunks = np.array([m["chunks"] for m in self.meta])
        self.chunk_start = np.cumsum([0, *chunks])
        self.feature_start = np.cumsum([0, *(chunks if self.pairs else chunks + 1)])

    def rows(self, split: Split, domain: Domain | None, data: DataConfig) -> np.ndarray:
        """(n,) rows of a split (and domain), with labels if `data.labels` asks for them."""
        assert domain is None or domain in DOMAINS
        keep = [
            i
            for i, m in enumerate(self.meta)
            if m["split"] == split
            and domain in (None, m["domain"])
            and (data.labels == "all" or self.tensors["labelled"][self._chunks(i)].any())
        ]
        return np.array(keep, np.int64)

    def _chunks(self, row: int) -> slice:
        return slice(int(self.chunk_start[row]), int(self.chunk_start[row + 1]))

    def examples(self, rows: Sequence[int]) -> list[Example | BadRow]:
        return [self._example(row) for row in rows]

    def _example(self, row: int) -> Example:
        m, span = self.meta[row], self._chunks(row)
        left, right = (HandState(state) for state in m["states"])
        labelled = np.ascontiguousarray(self.tensors["labelled"][span].T)
        codes = np.ascontiguousarray(self.tensors["codes"][span].transpose(1, 0, 2))
        words = (m["instructions"], m["description"], float(m["chunks"]))
        return Example(m["clip_id"], m["task"], (left, right), labelled, codes, *words)

    def visuals(self, row: int, boundaries: Sequence[int], pairs: Sequence[int]) -> Visuals:
        image = self.tensors["images"][row]
        if not boundaries:
            return Visuals(image)
        first = int(self.feature_start[row])
        if self.pairs:
            at = np.array([first + time for time in pairs], np.int64)
            of_pairs = np.concatenate([self.tensors["first_features"][row : row + 1], self.tensors["features"][at]])
            return Visuals(image, pair_features=of_pairs, still_features=self.tensors["still_features"][at])
        return Visuals(image, features=self.tensors["features"][[first + b for b in boundaries]])

    def blank(self) -> Visuals:
        image = np.zeros_like(self.tensors["images"][0])
        nothing = np.zeros_like(self.tensors["features"][:1])
        if self.pairs:
            return Visuals(image, pair_features=nothing, still_features=nothing[:0])
        return Visuals(image, features=nothing)
