"""One generation as files: motion as NPZ, and an mp4 with the drawn hands."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jala_ray import storage
from jala_ray.data.manifest.table import Manifest
from jala_ray.generation.files import motion_arrays, write_npz
from jala_ray.generation.generator import Generator
from jala_ray.generation.motion import Motion
from jala_ray.generation.scene import Asked, Scene, View, clip_scene, find_row, generate_clip
from jala_ray.reports.kit.drawn import HEIGHT, frames_inside, project_motion, write_drawn
from jala_ray.types import HAND_NAMES, Hand

SECONDS = 3.0
"""Of model time, generated from a video where nothing else is asked for."""


@dataclass(frozen=True)
class Generated:
    """What was generated, and where it lies."""

    motion: Motion
    scene: Scene
    text: str
    npz: str
    mp4: str
    inside: dict[Hand, int]
    """Frames in which each hand is in the picture."""

    def lines(self) -> list[str]:
        """What the command prints."""
        frames, camera = self.motion.features.shape[1], self.scene.camera
        said = [f"text: {self.text}"]
        said += [f"{HAND_NAMES[h]} hand: in the picture in {n} of {frames} frames" for h, n in self.inside.items()]
        if self.scene.assumed:
            said.append(
                f"camera: nobody told it, so fx = fy = {camera.fx:.0f} px of {camera.width} x {camera.height} is assumed for the drawing"
                " (--fov or --intrinsics); the motion itself does not depend on it"
            )
        return [*said, self.npz, self.mp4]


@dataclass(frozen=True)
class Output:
    """Where a generation is written: to `OUT.npz` and `OUT.mp4`."""

    out: str
    height: int = HEIGHT
    """Of the drawn picture, px."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Facts that the NPZ tells beside its own."""


def generate_from_video(model: Generator, scene: Scene, asked: Asked, output: Output) -> Generated:
    """Motion from a scene that begins at a frame of a video, or is a picture: `SECONDS` of the right hand unless asked otherwise."""
    text, seconds = asked.text or "", SECONDS if asked.seconds is None else asked.seconds
    motion = model.generate(scene.video, text, seconds, asked.hands or "right", scene.start_s)
    return _write(model, motion, scene, text, output, {"task": "generation"})


def generate_from_clip(
    model: Generator, manifest: str, clip_id: str | None, asked: Asked, output: Output, view: View | None = None
) -> Generated:
    """Motion for a clip of a manifest, labelled or not; None: its first held-out clip. See `generate_clip`."""
    opened = Manifest(manifest, model.options)
    row = find_row(opened, clip_id, asked.task)
    motion, text, clip = generate_clip(model, opened, row, asked)
    facts = {"task": asked.task, "manifest": manifest, "clip_id": clip.clip_id}
    return _write(model, motion, clip_scene(clip, view, model.options), text, output, facts)


def _write(
    model: Generator, motion: Motion, scene: Scene, text: str, output: Output, about: dict[str, Any]
) -> Generated:
    options, pixels, out = model.options, project_motion(motion, scene), output.out
    npz, mp4 = f"{out}.npz", f"{out}.mp4"
    facts = {
        "text": text,
        "video": scene.video,
        "run": model.config.name,
        "settings": dataclasses.asdict(model.settings),
        "jala_ray": version("jala-ray"),
    }
    if not storage.is_s3(out):
        Path(storage.local_path(out)).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "drawn.mp4")
        write_drawn(scene, pixels, made, text=text, height=output.height, options=options)
        write_npz(npz, motion_arrays(motion, scene, pixels, facts | about | dict(output.about)), options)
        storage.write_bytes(mp4, made.read_bytes(), options)
    inside = {hand: frames_inside(found, scene) for hand, found in pixels.items()}
    return Generated(motion, scene, text, npz, mp4, inside)
