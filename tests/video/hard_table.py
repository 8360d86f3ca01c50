"""The table of hard videos in docs/video.md: what `VideoReader` makes of each, measured against ffmpeg's own frames.

`python -m tests.video.hard_table` prints the rows, with `--write` it puts them into the document. Rows of given files need the
folders of shared test inputs; without them they stay as they are.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import av
import numpy as np

from jala_ray.types import VideoError
from jala_ray.video.decode import VideoReader, main_stream
from jala_ray.video.picture import Picture
from tests.conftest import SHARED_DATA
from tests.video.ffmpeg_frames import Reference, difference, reference, stored_pixels
from tests.video.hard_files import GIVEN, MADE, made

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "video.md"
HEADER = "| file | what it is | frames | header says | difference | verdict |\n|---|---|---:|---:|---:|---|\n"
BETWEEN = "between two frames"
SECTIONS = (*GIVEN, "made")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    file: str
    what: str
    frames: int | None
    """That ffmpeg shows; None, as the next two, for a file that is refused."""
    stated_s: float | None
    """Duration by the header."""
    difference: float | None
    """Largest mean absolute difference of a picture to ffmpeg's, in levels of 255."""
    verdict: str

    def __str__(self) -> str:
        frames = "" if self.frames is None else self.frames
        stated = "" if self.stated_s is None else f"{self.stated_s:.2f} s"
        levels = "" if self.difference is None else f"{self.difference:.2f}"
        return f"| `{self.file}` | {self.what} | {frames} | {stated} | {levels} | {self.verdict} |\n"

    @property
    def but_difference(self) -> Row:
        """What must be the same on every machine."""
        return replace(self, difference=None)

    @staticmethod
    def parse(line: str) -> Row:
        file, what, frames, stated, levels, verdict = (cell.strip() for cell in line.strip().strip("|").split("|"))
        return Row(
            file.strip("`"),
            what,
            int(frames) if frames else None,
            float(stated.removesuffix(" s")) if stated else None,
            float(levels) if levels else None,
            verdict,
        )


@dataclass
class Measured:
    """What came out for one file."""

    row: Row
    faults: list[str] = field(default_factory=list)
    """Where the reader gave another frame than ffmpeg, or none without saying that the file is damaged."""


def measure(path: Path, what: str) -> Measured:
    """Read every frame in order, then some backwards, between frames and beyond the ends, and compare with ffmpeg's."""
    try:
        with VideoReader(path) as reader:
            info = reader.info
            first = reader.each([info.start_s], lambda picture: picture.frame)[0]
    except VideoError as error:
        return Measured(Row(path.name, what, None, None, None, f"refused: {_reason(error)}"))
    with av.open(str(path)) as container:
        stream = main_stream(container)
        assert stream is not None
        truth = reference(path, stream.index, first)
    if truth is None:
        return Measured(Row(path.name, what, 0, info.duration_s, None, ""), ["ffmpeg shows no frame"])
    comparison = _Comparison(path, truth)
    comparison.in_order()
    comparison.in_any_order()
    row = Row(path.name, what, len(truth), info.duration_s, max(comparison.differences), comparison.verdict)
    return Measured(row, comparison.faults)


class _Comparison:
    def __init__(self, path: Path, truth: Reference) -> None:
        self.path, self.truth = path, truth
        self.refused: set[int] = set()
        self.reason = ""
        """Why some frames are refused, or the times of frames that ffmpeg does not show either."""
        self.differences: list[float] = []
        self.faults: list[str] = []

    @property
    def verdict(self) -> str:
        if not self.reason:
            return "decoded"
        return f"decoded, {len(self.refused) or 'times of lost'} frames refused: {self.reason}"

    def in_order(self) -> None:
        """Every frame by its own time."""
        with VideoReader(self.path) as reader:
            for place, time_s in enumerate(self.truth.times):
                try:
                    stored = reader.each([time_s], lambda picture: stored_pixels(picture.frame))[0]
                except VideoError as error:
                    self.refused.add(place)
                    self.reason = self.reason or _reason(error)
                else:
                    self._identify(stored, place, f"{time_s:.4f} s, in order")

    def in_any_order(self) -> None:
        times, last = self.truth.times, len(self.truth) - 1
        places = np.unique(np.linspace(0, last, 9).astype(int))[::-1]
        with VideoReader(self.path) as reader:
            for place in places:
                self._check(reader, place, times[place], "backwards")
                if place < last and times[place + 1] - times[place] > 0.004:
                    for share in (0.5, 0.9):
                        between = times[place] + share * (times[place + 1] - times[place])
                        self._check(reader, place, between, BETWEEN)
            self._check(reader, 0, times[0] - 1, "before the first")
            self._check(reader, last, times[last] + 0.5 / reader.info.fps, "after the last")
            try:
                reader.each([times[last] + 3 / reader.info.fps + 0.1], Picture.rgb)
                self.faults.append("a frame long after the last")
            except VideoError:
                pass
        for place in (places[0], places[len(places) // 2]):
            with VideoReader(self.path) as reader:
                self._check(reader, place, times[place], "opened anew")

    def _check(self, reader: VideoReader, place: int, time_s: float, how: str) -> None:
        try:
            stored, rgb = reader.each([time_s], lambda picture: (stored_pixels(picture.frame), picture.rgb()))[0]
        except VideoError as error:
            self.reason = self.reason or _reason(error)
            if place not in self.refused and how != BETWEEN:
                self.faults.append(f"{time_s:.4f} s, {how}: {error}")
            return
        self._identify(stored, place, f"{time_s:.4f} s, {how}")
        if rgb.shape == self.truth.rgb[place].shape:
            self.differences.append(difference(rgb, self.truth.rgb[place]))
        else:
            self.faults.append(f"shape {rgb.shape} for {self.truth.rgb[place].shape}")

    def _identify(self, stored: np.ndarray, place: int, where: str) -> None:
        """The pixels are those of frame `place`, and a neighbour that differs from it fits worse."""
        truth = self.truth.stored
        error = difference(stored, truth[place])
        others = [p for p in (place - 1, place + 1) if 0 <= p < len(truth) and (truth[p] != truth[place]).any()]
        if error > 0.5 or any(difference(stored, truth[other]) <= error for other in others):
            self.faults.append(f"{where}: not frame {place}, off by {error:.2f}")


def _reason(error: VideoError) -> str:
    """The reason without time and place, which the table has no use for."""
    return re.sub(r" (at|from) -?[\d.]+ .*", "", str(error.value))


def measured(section: str, folder: Path) -> Iterator[Measured]:
    """All files of a section; made ones are written to `folder`."""
    if section == "made":
        yield from (measure(made(folder, name), kind.what) for name, kind in MADE.items())
    else:
        yield from (measure(SHARED_DATA / section / name, what) for name, what in GIVEN[section].items())


def stated_rows(section: str) -> dict[str, Row]:
    """The document's rows of a section by file."""
    body = _marked(section).search(DOCUMENT.read_text())
    assert body is not None, f"{DOCUMENT.name} has no table {section}"
    rows = [Row.parse(line) for line in body[2].splitlines() if line.startswith("| `")]
    return {row.file: row for row in rows}


def _marked(section: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- table {section} -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the rows into docs/video.md")
    write = parser.parse_args().write
    tables: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for section in SECTIONS:
            if section in GIVEN and not (SHARED_DATA / section).is_dir():
                continue
            tables[section] = HEADER
            for result in measured(section, Path(folder)):
                tables[section] += str(result.row)
                print(str(result.row), end="")
                if result.faults:
                    raise SystemExit("\n".join(result.faults))
    if write:
        _write(tables)


def _write(tables: Mapping[str, str]) -> None:
    text = DOCUMENT.read_text()
    for section, table in tables.items():
        text = _marked(section).sub(lambda found, table=table: found[1] + table + found[3], text)
    DOCUMENT.write_text(text)


if __name__ == "__main__":
    main()
