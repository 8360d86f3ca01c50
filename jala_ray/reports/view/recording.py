"""A Rerun recording that is written entity by entity; every moment is seconds on the timeline `time`, after its episode's beginning."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jala_ray.reports.kit.overlay import BONES
from jala_ray.types import ConfigError

APPLICATION, TIME = "jala_view", "time"
JPEG_QUALITY = 85
REMEDY = "Install the extra: pip install 'jala-ray[view]'."
Color = tuple[int, int, int]


def rerun(module: str = "rerun") -> Any:
    """The package. Raises `ConfigError` where it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError("jala view", f"no module {error.name}", "the package rerun-sdk", REMEDY) from None


@dataclass(frozen=True)
class Wanted:
    """How much is shown."""

    most: int = 4
    """Episodes, clips or rollouts, evenly spread."""
    numbers: tuple[int, ...] = ()
    """Those alone."""
    height: int = 240
    """px of pictures, at most."""
    pictures_hz: float = 10.0
    """Pictures a second, at most."""

    def __post_init__(self) -> None:
        for name, value, least in (("most", self.most, 1), ("height", self.height, 16)):
            if value < least:
                raise ConfigError(name, value, f"{least} or more")
        if not 0 < self.pictures_hz < np.inf:
            raise ConfigError("pictures-hz", self.pictures_hz, "a number above 0")

    def spread(self, count: int) -> list[int]:
        """Of 0 to `count` - 1, at most `most`."""
        return sorted(set(np.linspace(0, count - 1, min(self.most, count)).round().astype(int).tolist()))

    def every(self, rate_hz: float) -> int:
        """Pictures from one that is shown to the next, of so many a second."""
        return max(1, int(np.ceil(rate_hz / self.pictures_hz - 1e-9)))

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) as shown; never enlarged."""
        shown = min(self.height, height)
        return shown, max(1, round(width * shown / height))


@dataclass
class Tab:
    """What of an episode is shown where."""

    pictures: list[str] = field(default_factory=list)
    plots: list[str] = field(default_factory=list)
    space: str | None = None
    words: list[str] = field(default_factory=list)


class ViewWriter:
    """Writes a file that appears under its name when all of it is there. Paths are sequences of names; the first is the episode's.

    Raises `ConfigError` where rerun is not installed.
    """

    def __init__(self, out: Path, name: str) -> None:
        self.rr, self.out, self.tabs = rerun(), out, dict[str, Tab]()
        self._part = out.with_name(f".{out.name}.part")
        self._part.parent.mkdir(parents=True, exist_ok=True)
        self.rr.set_strict_mode(True)  # else what can't be written is a line of a log
        self.stream = self.rr.RecordingStream(APPLICATION, recording_id=name)
        self.stream.set_log_tick_enabled(False)
        self.stream.set_log_time_enabled(False)
        self.stream.save(str(self._part))

    def __enter__(self) -> ViewWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is None:
            self.stream.send_blueprint(self._blueprint())
        self.stream.disconnect()
        self._part.unlink(missing_ok=True) if kind is not None else self._part.rename(self.out)

    def path(self, *names: str) -> str:
        return "/".join(self.rr.escape_entity_path_part(name) for name in names)

    def tab(self, episode: str) -> Tab:
        return self.tabs.setdefault(episode, Tab())

    # --- what is written ---------------------------------------------------------------------------------------------

    def series(self, names: Sequence[str], times_s: np.ndarray, values: np.ndarray) -> None:
        """Numbers (T,) at times (T,), a line in the chart of the names above it; without those that are not finite."""
        path, there = self.path(*names), np.isfinite(values)
        if (chart := self.path(*names[:-1])) not in (plots := self.tab(names[0]).plots):
            plots.append(chart)
        if there.any():
            times = self.rr.TimeColumn(TIME, duration=np.asarray(times_s, np.float64)[there])
            scalars = self.rr.Scalars.columns(scalars=np.asarray(values, np.float64)[there])
            self.stream.send_columns(path, [times], scalars)

    def dimensions(self, names: Sequence[str], called: Sequence[str], times_s: np.ndarray, values: np.ndarray) -> None:
        """Numbers (T, D), a line for each dimension's name."""
        for i, name in enumerate(called):
            self.series([*names, name], times_s, values[:, i])

    def at(self, time_s: float) -> None:
        self.stream.set_time(TIME, duration=float(time_s))

    def picture(self, names: Sequence[str], time_s: float, picture: np.ndarray) -> None:
        """(H, W, 3) uint8, as JPEG."""
        buffer = BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=JPEG_QUALITY)
        self.jpeg(names, time_s, buffer.getvalue())

    def jpeg(self, names: Sequence[str], time_s: float, payload: bytes) -> None:
        path = self.path(*names)
        if path not in (pictures := self.tab(names[0]).pictures):
            pictures.append(path)
        self.at(time_s)
        self.stream.log(path, self.rr.EncodedImage(contents=payload, media_type="image/jpeg"))

    def words(self, names: Sequence[str], text: str) -> None:
        """What holds all the time."""
        self.tab(names[0]).words.append(self.path(*names))
        self.stream.log(self.path(*names), self.rr.TextDocument(text), static=True)

    def skeleton(self, names: Sequence[str], time_s: float, joints: np.ndarray, color: Color) -> None:
        """Joints (21, 3) m or (21, 2) px with their bones, without those that are not finite; of no joint (0, 2 or 3): none from now on."""
        points, lines = (getattr(self.rr, f"{kind}{joints.shape[1]}D") for kind in ("Points", "LineStrips"))
        bones = [joints[[a, b]] for a, b in BONES if len(joints) and np.isfinite(joints[[a, b]]).all()]
        self.at(time_s)
        self.stream.log(self.path(*names, "joints"), points(joints[np.isfinite(joints).all(1)], colors=[color]))
        self.stream.log(self.path(*names, "bones"), lines(bones, colors=[color]))

    # --- how it is laid out ------------------------------------------------------------------------------------------

    def _blueprint(self) -> Any:
        views = rerun("rerun.blueprint")
        tabs = [_tab(views, name, tab) for name, tab in self.tabs.items()]
        return views.Blueprint(views.Tabs(*tabs), collapse_panels=True)


def _tab(views: Any, name: str, tab: Tab) -> Any:
    seen = [views.Spatial2DView(origin=path, name=path.partition("/")[2]) for path in tab.pictures]
    seen += [views.Spatial3DView(origin=tab.space, name="space")] if tab.space else []
    seen += [views.TextDocumentView(origin=path, name="words") for path in tab.words]
    plots = [views.TimeSeriesView(origin=path, name=path.partition("/")[2]) for path in tab.plots]
    parts = [part for part in (views.Grid(*seen) if seen else None, views.Vertical(*plots) if plots else None) if part]
    return views.Horizontal(*parts, name=name)


def flat(names: Any, width: int) -> list[str]:
    """Names of a signal's dimensions as info.json has them, in a list, in lists of it, or by what they are of; else their numbers."""
    found = _leaves(names)
    return found if len(found) == width == len(set(found)) else [str(i) for i in range(width)]


def _leaves(names: Any) -> list[str]:
    if isinstance(names, Mapping):  # {"motors": [names]}, or {name: number}
        names = [one if isinstance(one, list) else key for key, one in names.items()]
    if isinstance(names, list):
        return [leaf for one in names for leaf in _leaves(one)]
    return [] if names is None else [str(names)]
