"""Generate hand motion from a video or picture and a text: poses as NPZ, and an mp4 with drawn hands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import FlagConversionOff, Positional, arg

from jala_ray.config import GenerationConfig
from jala_ray.storage import StorageOptions
from jala_ray.types import WILD_TIME_SCALE, ConfigError

DEFAULT = GenerationConfig()


@dataclass(frozen=True)
class Arguments:
    """Generate motion from a video's frame (or a picture) and a text, or for a clip of a manifest; no labels are needed."""

    checkpoint: Positional[Annotated[str, arg(metavar="CHECKPOINT")]]
    """A checkpoint folder, a run folder (its newest), or an export; local or s3://."""
    video: str | None = None
    """A video, local or s3://, or a picture; give it a --text."""
    text: str | None = None
    """What the hands shall do, e.g. 'Pour the water.'; None: the clip's first instruction."""
    manifest: str | None = None
    """Instead of a video: a manifest, whose clip brings text, length, hands and camera."""
    clip: str | None = None
    """clip_id in the manifest; None: its first held-out one."""
    out: str = "generated"
    """Writes OUT.npz and OUT.mp4; local or s3://."""
    seconds: float | None = None
    """Length of the motion in seconds of model time; None: 3, or the clip's length."""
    hands: Literal["left", "right", "both"] | None = None
    """Which hands move; None: the right one, or those of the clip."""
    start: float = 0.0
    """Where in the video the motion begins, seconds."""
    time_scale: float | None = None
    """Video seconds that one second of motion takes; None: 0.5, as training reads videos in the wild; 1 for recordings in a lab."""
    fov: float | None = None
    """Field of view of the video's longer side, degrees; None: the clip's camera, or 60 is assumed. Used to draw."""
    intrinsics: tuple[float, float, float, float] | None = None
    """fx fy cx cy of the upright video, px. Used to draw."""
    task: Literal["generation", "continuation"] = "generation"
    """continuation: the true motion of the first half of a labelled clip is given, and goes on."""
    passes: int = DEFAULT.passes
    """Forward passes per chunk of masked prediction."""
    ensemble: int = DEFAULT.ensemble
    """Decodes of each chunk whose motions are averaged; 1 is one greedy decode."""
    temperature: float = DEFAULT.temperature
    """Of the noise that tells the decodes of an ensemble apart."""
    seed: int = DEFAULT.seed
    """The same seed gives the same motion."""
    height: int = 360
    """Of the drawn picture, px, an even number."""
    device: str | None = None
    """cpu or cuda; None: a GPU where there is one."""
    compile: Literal["auto", "on", "off"] = "off"
    """Compile the language blocks of decoding, which takes longer than a clip or two save; auto: on a GPU."""
    storage: FlagConversionOff[StorageOptions] = field(default_factory=StorageOptions)


def check(arguments: Arguments) -> None:
    """Refuse what can't be, before anything is loaded. Raises `ConfigError`."""
    given = {name: getattr(arguments, name) for name in ("video", "manifest") if getattr(arguments, name)}
    if len(given) != 1:
        raise ConfigError("video", given, "a --video (or picture), or a --manifest")
    if arguments.video and not (arguments.text or "").strip():
        raise ConfigError("text", arguments.text, "what the hands shall do", "e.g. --text 'Pour the water.'")
    if arguments.video and arguments.task == "continuation":
        remedy = "Give a --manifest and a --clip with hand poses: their first half is what is continued."
        raise ConfigError("task", arguments.task, "generation for a video", remedy)
    if arguments.video and arguments.clip:
        raise ConfigError("clip", arguments.clip, "none for a video", "A clip belongs to a --manifest.")
    if arguments.manifest and (arguments.start or arguments.time_scale is not None):
        name = "start" if arguments.start else "time-scale"
        raise ConfigError(name, getattr(arguments, name.replace("-", "_")), "none for a clip, which has its own")
    if arguments.fov is not None and arguments.intrinsics is not None:
        raise ConfigError("fov", arguments.fov, "one of --fov and --intrinsics")
    if arguments.fov is not None and not 0 < arguments.fov < 180:
        raise ConfigError("fov", arguments.fov, "degrees between 0 and 180")
    for name in ("seconds", "time_scale"):
        if getattr(arguments, name) is not None and not getattr(arguments, name) > 0:
            raise ConfigError(name.replace("_", "-"), getattr(arguments, name), "a number above 0")
    if arguments.height < 2 or arguments.height % 2:
        raise ConfigError("height", arguments.height, "an even number of px")


def run(arguments: Arguments) -> int:
    check(arguments)
    settings = GenerationConfig(arguments.passes, arguments.ensemble, arguments.temperature, arguments.seed)
    import torch

    from jala_ray import storage
    from jala_ray.generation.generator import Generator
    from jala_ray.generation.scene import Asked, View, video_scene
    from jala_ray.reports.motion.generated import Output, generate_from_clip, generate_from_video
    from jala_ray.training import history

    address = history.resolve(storage.absolute(arguments.checkpoint), arguments.storage)
    device = torch.device(arguments.device) if arguments.device else None
    model = Generator.open(address, settings, device, arguments.storage, arguments.compile)
    view, about = View(arguments.fov, arguments.intrinsics), {"checkpoint": address}
    output = Output(storage.absolute(arguments.out), arguments.height, about)
    asked = Asked(arguments.text, arguments.seconds, arguments.hands, arguments.task)
    if arguments.video:
        scale = WILD_TIME_SCALE if arguments.time_scale is None else arguments.time_scale
        scene = video_scene(arguments.video, view, arguments.start, scale, model.options)
        made = generate_from_video(model, scene, asked, output)
    else:
        manifest = storage.absolute(arguments.manifest or "")
        made = generate_from_clip(model, manifest, arguments.clip, asked, output, view)
    print("\n".join(made.lines()))
    return 0
