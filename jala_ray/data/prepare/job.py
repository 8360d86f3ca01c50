"""Raw videos -> training clips, one piece of work at a time. Knows no Ray; `pipeline.work_through` spreads the pieces over a cluster.

A *piece* is some spans of one video. It leaves, under names that follow from what it is: one mp4 a span (`clips.py`), and a
manifest of its clips in `_parts/`, whose Parquet file comes last. A rerun does the pieces that have none. `finish` joins them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from jala_ray import storage
from jala_ray.data.adapters.video_folder import FolderVideo, VideoFolder
from jala_ray.data.manifest.rows import row_to_clip
from jala_ray.data.manifest.set_aside import reasons
from jala_ray.data.manifest.table import Manifest
from jala_ray.data.manifest.writing import Rejection, WriteReport, merge_manifests, write_manifest
from jala_ray.data.prepare.clips import ClipMaker, PrepareConfig
from jala_ray.storage import StorageOptions
from jala_ray.storage.claims import Claim, missing_parts
from jala_ray.types import Clip, ConfigError, StorageError, StoreUnavailable, UserError, VideoError
from jala_ray.video.decode import VideoReader

SPANS_A_PIECE, MOTIONS_A_PIECE = 32, 1024
PARTS, VIDEOS, SETTINGS, SUMMARY = "_parts", "videos", "prepare.json", "summary.json"
PREPARED_VERSION = 2
"""Of what a prepared clip is."""


@dataclass(frozen=True)
class VideoPiece:
    """Spans of one video to be prepared together."""

    name: str
    """16 hex digits that follow from what it is of."""
    video: str
    """The raw video as the input names it; "" for motion alone."""
    weight: float
    """How much of the whole work it is: bytes of the video, or seconds of the spans."""
    rows: tuple[int, ...] = ()
    """Of the input manifest."""
    whole: FolderVideo | None = None
    """Else a video of the input folder."""

    @property
    def file(self) -> str:
        """The part's manifest, which comes last."""
        return f"{self.name}.parquet"


@dataclass(frozen=True)
class Preparation:
    """What is prepared, and where to. Picklable; every worker holds one. Addresses are absolute."""

    source: str | VideoFolder
    """A manifest, or a folder of raw videos."""
    out: str
    settings: PrepareConfig
    options: StorageOptions | None = None

    def pieces(self) -> list[VideoPiece]:
        """All of the work, in order. Lists a folder, or reads light columns of a manifest; opens no video."""
        if isinstance(self.source, VideoFolder):
            videos = self.source.videos(self.options)
            # What is wrong with a video may name its place, and the names of pieces are the same wherever it lies.
            named = [(_name(asdict(v) | {"fault": bool(v.fault)}), v) for v in videos]
            return [VideoPiece(name, v.name, max(1.0, v.size or 0), (), v) for name, v in named]
        table = Manifest(self.source, self.options).columns(["clip_id", "video_uri", "start_s", "end_s", "row_crc"])
        ids, uris, starts, ends, crcs = (column.to_pylist() for column in table.columns)
        of_video: dict[str | None, list[int]] = {}
        for row, uri in enumerate(uris):
            of_video.setdefault(uri, []).append(row)
        found = []
        for uri, rows in of_video.items():
            # Rows of one span belong together, as they share a file, and neighbours too, as a video is read in order.
            same = (lambda row: (starts[row], ends[row])) if uri is not None else (lambda row: (row, row))
            spans = [tuple(run) for _, run in groupby(sorted(rows, key=lambda row: (*same(row), row)), key=same)]
            most = SPANS_A_PIECE if uri is not None else MOTIONS_A_PIECE
            for first in range(0, len(spans), most):
                mine = spans[first : first + most]
                weight = max(1.0, sum(ends[span[0]] - starts[span[0]] for span in mine) if uri is not None else 0.0)
                chosen = tuple(row for span in mine for row in span)
                name = _name([uri, [(ids[row], crcs[row]) for row in chosen]])
                found.append(VideoPiece(name, uri or "", weight, chosen))
        return found

    def begin(self, pieces: Sequence[VideoPiece], *, retry: bool = False) -> list[VideoPiece]:
        """The pieces that are to be done, those with errors too if `retry`.

        Raises ConfigError where `out` holds something else, or was made with other settings, or lies in the input.
        """
        self._claim()
        if not storage.is_s3(self.out):  # Unfinished files of pieces that were killed; a bucket shows none.
            storage.sweep(storage.join(self.out, PARTS), self.options)
        left = self.missing(pieces, retry=retry)
        if left:  # From here on the manifest that may be there is not the whole.
            storage.delete(storage.join(self.out, SUMMARY), self.options)
        return left

    def missing(self, pieces: Sequence[VideoPiece], *, retry: bool = False) -> list[VideoPiece]:
        """The pieces that have not been done, and those with errors if `retry`."""
        errors = (lambda piece: f"errors/{piece.file}") if retry else None
        return missing_parts(pieces, lambda piece: piece.file, storage.join(self.out, PARTS), self.options, errors)

    def _claim(self) -> None:
        """Write the settings down, or compare with those of an earlier run."""
        source = self.source
        if isinstance(source, VideoFolder) and f"{self.out}/".startswith(f"{source.folder}/"):
            remedy = "Its clips would be taken for raw videos."
            raise ConfigError("out", self.out, f"a folder outside of {source.folder}", remedy)
        given = asdict(source) if isinstance(source, VideoFolder) else source
        settings = asdict(self.settings) | {"cut": sorted(set(self.settings.cut))}
        now = {"version": PREPARED_VERSION, "source": given, **settings}
        remedy = "Choose another place or delete it."
        Claim(self.out, SETTINGS, now, "prepared set", remedy, self.options).take(self._refuse_other_manifest)

    def _refuse_other_manifest(self) -> None:
        with contextlib.suppress(storage.MissingFile):
            if other := [name for name in storage.list_dir(self.out, self.options) if name.endswith(".parquet")]:
                remedy = f"It holds {min(other)}, which the prepared manifest would replace."
                raise ConfigError("out", self.out, "an empty folder, or one of an earlier run", remedy)

    def _part(self, piece: VideoPiece) -> str:
        return storage.join(self.out, PARTS, piece.file)

    # --- one piece ---------------------------------------------------------------------------------------------------

    def do(self, piece: VideoPiece) -> dict[str, Any]:
        """Prepare a piece; returns its facts: `part`, `weight`, `clips`, `rejected`, `seconds` of source time, `bytes`, `notes`, `error`.

        What is wrong with a video is a rejected row with its reason. `error` is not empty if the piece failed: a store
        could not be reached, or worse. It has left no part then, and the next run does it again.
        """
        notes: list[str] = []
        facts = {"part": piece.video or piece.name, "weight": piece.weight, "clips": 0, "rejected": 0, "seconds": 0.0}
        facts |= {"bytes": 0, "notes": notes}
        try:
            with storage.scratch("prepare") as scratch:
                folder = storage.join(self.out, VIDEOS)
                maker = ClipMaker(self.settings, folder, piece.video, scratch, self.options)
                clips, part = maker.make(self._raw(piece, notes)), self._part(piece)
                report = write_manifest(clips, part, on_error="quarantine", base=self.out, options=self.options)
        except (StorageError, StoreUnavailable) as error:
            return facts | {"error": str(error)}
        except Exception as error:  # One odd video shall not stop thousands; the job reports it and does not succeed.
            traceback.print_exc()
            return facts | {"error": f"{type(error).__name__}: {error}"}
        made = {"clips": report.rows, "rejected": report.quarantined, "seconds": maker.seconds, "bytes": maker.bytes}
        return facts | made | {"error": ""}

    def _raw(self, piece: VideoPiece, notes: list[str]) -> Iterator[Clip | Rejection]:
        """The clips as they come in: of a folder, one per caption, however long. `notes` as in `VideoFolder.spans`."""
        if isinstance(self.source, VideoFolder):
            video = piece.whole
            assert video is not None
            if video.fault:
                yield self.source.rejected(video.name, video.fault)
                return
            try:
                with VideoReader(self.source.address(video.name), options=self.options) as reader:
                    yield from self.source.spans(video, reader, notes)
            except VideoError as error:
                yield self.source.rejected(video.name, f"a video that opens: {error}")
            return
        manifest = _opened(self.source, self.options)
        for row in piece.rows:
            try:
                yield row_to_clip(manifest.row(row), manifest.base)
            except UserError as error:
                if isinstance(error, StorageError):
                    raise
                yield Rejection(f"row {row}", "", None, f"a readable row of {manifest.path}: {error}")

    # --- the whole ---------------------------------------------------------------------------------------------------

    def finish(self, pieces: Sequence[VideoPiece]) -> dict[str, Any]:
        """Join the parts of all pieces, in their order, into the manifest at `out`; returns the summary, which is written beside it.

        Nothing happens if that was done before and no piece was done since.
        """
        work, place = _name([piece.name for piece in pieces]), storage.join(self.out, SUMMARY)
        if storage.exists(place, self.options):
            before = json.loads(storage.read_bytes(place, self.options))
            if before["work"] == work:
                return before
        report = merge_manifests([self._part(piece) for piece in pieces], self.out, self.options)
        summary = self._summary(report) | {"work": work}
        storage.write_bytes(place, json.dumps(summary, indent=1).encode(), self.options)
        return summary

    def _summary(self, report: WriteReport) -> dict[str, Any]:
        table = Manifest(self.out, self.options).columns(["domain", "split", "task_type", "video_uri", "end_s"])
        files = table.filter(table["video_uri"].is_valid()).group_by("video_uri").aggregate([("end_s", "max")])
        counts = {name: Counter(table[name].to_pylist()) for name in ("domain", "split", "task_type")}
        return {
            "rows": report.rows,
            "rows_by": {name: dict(sorted(of.items())) for name, of in counts.items()},
            "videos": len(files),
            "source_seconds": round(sum(files["end_s_max"].to_pylist()), 3),
            "set_aside": report.quarantined,
        }

    def set_aside(self) -> list[str]:
        """The first rows that were set aside, each as a line."""
        return reasons(storage.join(self.out, "errors", "rows.parquet"), self.options)


@functools.lru_cache(maxsize=1)
def _opened(path: str, options: StorageOptions | None) -> Manifest:
    """Once per process: it holds the places of all rows."""
    return Manifest(path, options)


def _name(what: object) -> str:
    return hashlib.blake2b(json.dumps(what, ensure_ascii=False).encode(), digest_size=8).hexdigest()
