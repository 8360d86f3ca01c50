"""The inspection page: its numbers are those of the rows, trouble that was planted shows, and nothing on it is loaded or run."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jala_ray.data.__main__ import main
from PIL import Image, ImageDraw

from jala_ray.data.manifest import rowfile
from jala_ray.data.manifest.table import Manifest, Rejection, write_manifest
from jala_ray.data.synthetic import WorldConfig, generate
from jala_ray.hands.resample import labelled_chunks
from jala_ray.reports.inspection import page as inspect
from jala_ray.reports.inspection.census import CellDraw, Census, in_turns, take_census
from jala_ray.reports.inspection.findings import Finding, find
from jala_ray.reports.inspection.motion import ClipMotion, measure, outliers
from jala_ray.reports.inspection.page import default_page, write_inspection
from jala_ray.reports.inspection.parts import histogram
from jala_ray.reports.inspection.quarantine import read_quarantine, reason_of
from jala_ray.reports.inspection.sample import fault, look_at, read_clips
from jala_ray.reports.kit import html
from jala_ray.types import Camera, Clip, Hand, HandState, HandTrack, ManifestError, UserError
from jala_ray.video.frames import index_boundaries
from jala_ray.video.packets import PacketScan
from jala_ray.video.write import write_mp4
from tests.reports.test_report import Page

FPS, WIDTH, HEIGHT = 30, 96, 72
CAMERA = Camera(90.0, 90.0, 48.0, 36.0, WIDTH, HEIGHT)
PLACES = {Hand.LEFT: -0.12, Hand.RIGHT: 0.12}
UNTRACKED = HandTrack(HandState.UNTRACKED)
ABSENT = HandTrack(HandState.ABSENT)


class Inspection(Page):
    """The page with its tables: rows of cells by section, a cell being its text and its tooltips."""

    def __init__(self, path: Path) -> None:
        self.rows: dict[str, list[list[tuple[str, list[str]]]]] = defaultdict(list)
        super().__init__(path)

    def handle_starttag(self, tag, attrs):
        super().handle_starttag(tag, attrs)
        section = next((name for kind, _, name in self.stack if kind == "section"), None)
        if section is not None and tag == "tr":
            self.rows[section].append([])
        if section is not None and tag in ("td", "th"):
            self.rows[section][-1].append(("", []))
        if self._in_cell() and "title" in dict(attrs):
            self.rows[str(section)][-1][-1][1].append(str(dict(attrs)["title"]))

    def handle_data(self, data):
        super().handle_data(data)
        if self._in_cell() and self.stack[-1][0] not in ("script", "style"):
            section = next(str(name) for kind, _, name in self.stack if kind == "section")
            text, titles = self.rows[section][-1][-1]
            self.rows[section][-1][-1] = text + data, titles

    def _in_cell(self) -> bool:
        return any(kind in ("td", "th") for kind, *_ in self.stack)

    def row(self, section: str, first: str, columns: int) -> list[float]:
        """The exact numbers (of the tooltips) of the row that begins with a word, in a table of so many columns."""
        cells = next(row for row in self.rows[section] if row[0][0] == first and len(row) == columns)
        return [float(titles[0].removesuffix(" h")) for _, titles in cells[1:] if titles and ":" not in titles[0]]

    def texts(self, section: str) -> list[str]:
        return [" | ".join(text for text, _ in row) for row in self.rows[section]]


@pytest.fixture(autouse=True)
def small_plotly(monkeypatch):
    monkeypatch.setattr(html, "plotly_js", lambda: "/* plotly */")


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Path]:
    """Files of 4 s at 30 fps that show something."""
    folder = tmp_path_factory.mktemp("videos")
    paths = [folder / f"{i}.mp4" for i in range(4)]
    for i, path in enumerate(paths):
        write_mp4(path, (noise(i) for _ in range(4 * FPS)), FPS)
    return paths


def track(side: Hand, frames: int, seed: int) -> HandTrack:
    """A hand at its side of the picture, that wanders some centimetres and closes its fingers by 20 to 30 degrees."""
    rng = np.random.default_rng(seed)
    t = np.arange(frames) / FPS
    wrist = np.stack([PLACES[side] + 0.03 * np.sin(t), 0.02 * np.cos(2 * t), 0.5 + 0.02 * t], -1)
    theta = rng.normal(0, 0.02, (frames, 15, 3))
    theta[:, :12, 2] += (1 if side is Hand.RIGHT else -1) * (0.4 + 0.1 * np.sin(t))[:, None]
    return HandTrack(
        HandState.LABELLED,
        np.ones(frames, bool),
        theta.astype(np.float32),
        rng.normal(0, 0.2, (frames, 3)).astype(np.float32),
        wrist.astype(np.float32),
        np.zeros(10, np.float32),
    )


def make_clip(name: str, video: Path | str | None, hands: str = "LR", seconds: float = 2.0, **change: object) -> Clip:
    """A lab clip of the source `take`; `hands` names the labelled ones, the others are untracked."""
    frames = round(seconds * FPS) + 1
    labelled = tuple(
        track(side, frames, sum(name.encode()) + side) if side.name[0] in hands else UNTRACKED for side in Hand
    )
    clip = Clip(
        clip_id=name,
        source="take",
        domain="lab",
        split="train",
        task_type="generation" if hands else "pure_video",
        video_uri=None if video is None else str(video),
        start_s=0.0,
        end_s=seconds,
        fps=FPS,
        time_scale=1.0,
        instructions=(f"Move the {name}.",),
        description="",
        camera=CAMERA,
        pose_time_s=np.arange(frames if hands else 0, dtype=np.float32) / FPS,
        hands=(labelled[0], labelled[1]),
    )
    return replace(clip, **change)  # pyright: ignore[reportArgumentType]


def with_hand(clip: Clip, side: Hand, **change: object) -> Clip:
    hands = [replace(hand, **change) if i == side else hand for i, hand in enumerate(clip.hands)]  # pyright: ignore
    return replace(clip, hands=(hands[0], hands[1]))


def indexed(clip: Clip) -> Clip:
    assert clip.video_uri is not None
    return replace(clip, packets=index_boundaries(PacketScan(clip.video_uri), clip))


def sound(videos: list[Path]) -> list[Clip]:
    """A manifest about which there is nothing to say: two domains, two splits, indexed videos."""
    wild = {"domain": "wild", "source": "street", "time_scale": 0.5}
    return [
        indexed(clip)
        for clip in (
            make_clip("cup", videos[0]),
            make_clip("pan", videos[0], start_s=2.0, end_s=4.0),
            make_clip("lid", videos[1], "R", split="val"),
            make_clip("jar", videos[2], "", 1.5, **wild),
            make_clip("box", videos[3], "L", 1.5, split="val", **wild),
        )
    ]


def findings_of(clips: Iterable[Clip | Rejection], folder: Path) -> list[Finding]:
    write_manifest(clips, folder, on_error="quarantine")
    manifest = Manifest(folder)
    census = take_census(manifest, 24, 24, 0)
    rows = list(range(len(manifest)))
    read, unreadable = read_clips(manifest, rows)
    looks = look_at({row: clip for row, clip in read.items() if clip.video_uri is not None})
    motions = [measure(row, clip) for row, clip in read.items() if len(clip.pose_time_s)]
    quarantine = read_quarantine(manifest)
    return find(census, list(read.values()), unreadable, looks, motions, outliers(motions), quarantine)


# --- counts


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    config = WorldConfig(lab_train=3, lab_val=1, wild_train=4, wild_val=1, seconds=(1, 2), width=64, height=48)
    return generate(folder, replace(config, labelled_share=0.6, dropout_share=0.6))


def several(videos: list[Path]) -> list[Clip]:
    """Rows that are easily counted twice: clips of several tasks, of one video, and motion alone."""
    cup = make_clip("cup", videos[0], seconds=3.0)
    valid = np.ones(91, bool)
    valid[40] = False
    lost = with_hand(make_clip("pan", videos[1], seconds=3.0), Hand.RIGHT, valid=valid)
    wild = {"domain": "wild", "source": "street", "time_scale": 0.5}
    return [
        cup,
        replace(cup, task_type="continuation"),
        lost,
        replace(lost, task_type="description", description="A pan moves.", instructions=()),
        make_clip("mug", None, "L", 2.5, camera=None, source="joints"),
        make_clip("jar", videos[2], "", 1.9, split="val", **wild),
        replace(make_clip("box", videos[2], "", start_s=2.0, end_s=3.0, fps=29.97, **wild), hands=(ABSENT, UNTRACKED)),
        replace(cup, task_type="description", description="A cup moves."),
    ]


def expected(clips: list[Clip]) -> dict[str, float]:
    """Counted clip by clip, each once."""
    once = list({clip.clip_id: clip for clip in clips}.values())
    labelled = [labelled_chunks(clip).sum(1) for clip in once]
    possible = sum(clip.n_chunks for clip in once for hand in clip.hands if hand.state is HandState.LABELLED)
    found = {
        "clips": len(once),
        "videos": len({clip.video_uri for clip in once} - {None}),
        "source_h": sum(clip.end_s - clip.start_s for clip in once) / 3600,
        "model_h": sum((clip.end_s - clip.start_s) / clip.time_scale for clip in once) / 3600,
        "chunks": sum(clip.n_chunks for clip in once),
        "left": sum(int(left) for left, _ in labelled),
        "right": sum(int(right) for _, right in labelled),
    }
    return found | {"lost": (possible - found["left"] - found["right"]) / possible if possible else 0.0}


@pytest.mark.parametrize("made", ["world", "several"])
def test_numbers_are_those_of_the_rows(made, world, videos, tmp_path):
    path = world if made == "world" else write_manifest(several(videos), tmp_path / "set", rows_per_file=3).path
    clips = list(Manifest(path))
    page = Inspection(write_inspection(path, tmp_path / "page.html", samples=3))
    total = expected(clips)
    for name, value in {
        "Rows": f"{len(clips)} ",
        "Clips": f"{total['clips']} ",
        "Videos": f"{total['videos']} ",
        "Chunks": f"{total['chunks']} ",
        "Labelled left": f"{total['left']} {total['left'] / total['chunks']:.1%}",
        "Labelled right": f"{total['right']} {total['right'] / total['chunks']:.1%}",
        "Lost to invalid frames": f"{total['lost']:.1%} ",
        "Source time": f"{3600 * total['source_h']:,.3g} s",
        "Quarantined": "0 ",
    }.items():
        assert re.sub(r" +", " ", page.tile(name)).startswith(f"{name} {value}"), name
    for source in {clip.source for clip in clips}:
        mine = [clip for clip in clips if clip.source == source]
        part = expected(mine)
        n, share = part["chunks"], part["clips"]
        val = len({clip.clip_id for clip in mine if clip.split == "val"}) / share
        numbers = [part[k] for k in ("clips", "videos", "source_h", "model_h")]
        numbers += [part["left"] / n, part["right"] / n]
        numbers += [part["lost"]] if any(h.state == HandState.LABELLED for clip in mine for h in clip.hands) else []
        assert page.row("sources", source, 11) == pytest.approx([*numbers, val])
    for key in ("source", "domain", "split", "task_type"):
        for value, rows in Counter(getattr(clip, key) for clip in clips).items():
            part = expected([clip for clip in clips if getattr(clip, key) == value])
            assert page.row("makeup", value, 4) == pytest.approx([rows, rows / len(clips), part["model_h"]]), (
                key,
                value,
            )
    once = list({clip.clip_id: clip for clip in clips}.values())
    for left in HandState:
        counts = [sum((c.hands[0].state, c.hands[1].state) == (left, right) for c in once) for right in HandState]
        shares = [count / len(once) for count in counts]
        assert page.row("hands", f"left {left.name.lower()}", 4) == pytest.approx(shares)
    bars = page.figure("Clip lengths")["data"]
    found = Counter({(bar["name"], x): y for bar in bars for x, y in zip(bar["x"], bar["y"], strict=True) if y})
    assert found == Counter((c.domain, f"{np.floor(2 * c.model_seconds + 1e-6) / 2:g}") for c in once)


def lines(census: Census) -> list[dict]:
    return census.lines("source", "task_type", "split", "fps", "length_s", "first", first=False)


def test_counts_and_draws_are_the_same_however_rows_lie_in_files(videos, tmp_path):
    clips = [replace(clip, clip_id=f"{clip.clip_id}{i}") for i in range(4) for clip in several(videos)]
    taken = []
    for size in (3, 7, 100):
        write_manifest(clips, tmp_path / str(size), rows_per_file=size)
        taken.append(take_census(Manifest(tmp_path / str(size)), 3, 4, seed=5))
    assert [len(list((tmp_path / str(size)).glob("*.parquet"))) for size in (3, 7, 100)] == [11, 5, 1]
    assert lines(taken[0]) == lines(taken[1]) == lines(taken[2])
    assert taken[0].sheet == taken[1].sheet == taken[2].sheet
    assert taken[0].moving == taken[1].moving == taken[2].moving
    other = take_census(Manifest(tmp_path / "7"), 3, 4, seed=6)
    assert lines(other) == lines(taken[0]) and other.sheet != taken[0].sheet
    for (source, task), rows in taken[0].sheet.items():
        drawn = [clips[row] for row in rows]
        assert {(c.source, c.task_type) for c in drawn} == {(source, task)} and all(c.video_uri for c in drawn)
    moving = [clips[row] for rows in taken[0].moving.values() for row in rows]
    assert all(len(c.pose_time_s) for c in moving) and len({c.clip_id for c in moving}) == len(moving)


def test_every_row_of_a_cell_is_drawn_alike_often():
    words = pa.array(["a"] * 30 + ["b"] * 3).dictionary_encode()
    drawn: Counter[int] = Counter()
    for seed in range(400):
        draw = CellDraw(["word"], 6, seed)
        for begin in (0, 11, 22):
            table = pa.table({"word": words[begin : begin + 11]})
            draw.add(table, np.ones(11, bool), begin)
        rows = draw.rows()
        assert len(set(rows["a",])) == 6 and sorted(rows["b",]) == [30, 31, 32]
        drawn.update(rows["a",])
    # 80 expected of each, standard deviation 8.
    assert len(drawn) == 30 and min(drawn.values()) > 50 and max(drawn.values()) < 110


def test_sources_take_turns_and_each_cell_comes_before_one_comes_twice():
    cells = {("a", "x"): [1, 2, 3], ("a", "y"): [4], ("b", "x"): [5, 6], ("c", "z"): [7]}
    assert in_turns(cells) == [1, 5, 7, 4, 2, 6, 3]
    assert in_turns({("a",): [1, 2], ("b",): [3]}) == [1, 3, 2]
    assert in_turns({}) == []


def test_only_the_samples_rows_are_read(tmp_path, monkeypatch):
    clips = [make_clip(f"c{i}", "nowhere.mp4", "" if i % 2 else "R", 1.0) for i in range(120)]
    path = write_manifest(clips, tmp_path / "set").path
    monkeypatch.setattr(inspect, "MEASURED", 5)
    monkeypatch.setattr(inspect, "MEASURED_EACH", 5)
    fetched = []
    fetch = rowfile.fetch
    monkeypatch.setattr(rowfile, "fetch", lambda *args: fetched.append(args) or fetch(*args))
    page = Inspection(write_inspection(path, samples=2))
    assert 2 <= len(fetched) <= 4 * 2 + 5
    assert "120" in page.tile("Clips") and "2 clips from 2 of 2 pairs" in page.sections["sheet"]
    assert page.sections["sheet"].count("no such file") == 2
    assert "5 sampled labelled clips" in page.sections["motion"]


@pytest.mark.parametrize("name,value", [("source", None), ("time_scale", 0.0), ("end_s", np.nan), ("n_chunks", None)])
def test_an_index_no_writer_leaves_is_refused_by_its_column(name, value, tmp_path):
    path = write_manifest([make_clip("cup", None), make_clip("pan", None)], tmp_path / "m.parquet").path
    table = pq.read_table(path)
    column = pa.array([value, *table[name].to_pylist()[1:]], table.schema.field(name).type)
    pq.write_table(table.set_column(table.column_names.index(name), table.schema.field(name), column), path)
    with pytest.raises(ManifestError, match=rf"m\.parquet: column {name}: got '1 rows without one'"):
        write_inspection(path)


def test_an_empty_manifest_has_a_page(tmp_path):
    page = Inspection(write_inspection(write_manifest([], tmp_path / "m.parquet").path))
    assert "The manifest has no rows." in page.sections["warnings"]
    assert ("badge bad", "1 to look into") in page.badges and page.figures == {}
    for section in ("hands", "motion", "sheet", "quarantine"):
        assert page.sections[section]


# --- motion


def test_motion_is_in_metres_real_seconds_and_degrees():
    clip = make_clip("cup", None, time_scale=0.5)
    found = measure(3, clip)
    right, left = found.hands[Hand.RIGHT], found.hands[Hand.LEFT]
    wrist = clip.hands[1].wrist.astype(float)
    assert np.array_equal(right.values["x"], wrist[:, 0]) and np.array_equal(right.values["z"], wrist[:, 2])
    assert right.values["speed"] == pytest.approx(np.linalg.norm(np.diff(wrist, axis=0), axis=1) * FPS, rel=1e-3)
    angles = [np.rad2deg(np.sqrt((vector**2).sum())) for vector in clip.hands[1].theta[7].astype(float)]
    assert right.values["finger"].reshape(-1, 15)[7] == pytest.approx(angles)
    assert 15 < np.median(left.values["bend"]) < 35 and 15 < np.median(right.values["bend"]) < 35
    assert found.gap == pytest.approx(0.24) and found.row == 3
    assert right.inside is not None and right.inside.all()
    # The camera moves 1 m to the left, so what it sees lies 1 m to the right, and out of the picture.
    moved = np.tile(np.eye(3, 4, dtype=np.float32), (len(wrist), 1, 1))
    moved[:, 0, 3] = 1
    aside = measure(0, replace(clip, extrinsics=moved)).hands[Hand.RIGHT]
    assert aside.seen[:, 0] == pytest.approx(wrist[:, 0] + 1) and np.array_equal(aside.values["x"], wrist[:, 0])
    assert aside.inside is not None and not aside.inside.any()
    valid = np.arange(len(wrist)) % 3 > 0
    gappy = measure(0, with_hand(clip, Hand.RIGHT, valid=valid)).hands[Hand.RIGHT]
    assert len(gappy.seen) == valid.sum() and len(gappy.values["speed"]) == 20


def kinds(motions: list[ClipMotion]) -> set[tuple[str, str, str]]:
    return {(outlier.clip_id, outlier.hand, outlier.kind) for outlier in outliers(motions)}


def planted(video: Path | str | None) -> tuple[list[Clip], set[tuple[str, str, str]]]:
    """Clips with one thing wrong each, and what should be said of them; the first is sound."""
    clip = make_clip("fine", video)
    left, right = clip.hands
    jump, far, behind = (right.wrist.copy() for _ in range(3))
    jump[20, 0] += 0.4
    far[:, 2] += 2.0
    behind[:, 2] -= 1.0
    bent = right.theta.copy()
    bent[5, 3, 0] = 3.0
    clips = [
        clip,
        replace(clip, clip_id="swapped", hands=(right, left)),
        with_hand(replace(clip, clip_id="mirrored"), Hand.LEFT, theta=right.theta),
        with_hand(replace(clip, clip_id="jump"), Hand.RIGHT, wrist=jump),
        with_hand(replace(clip, clip_id="far"), Hand.RIGHT, wrist=far),
        with_hand(replace(clip, clip_id="behind"), Hand.RIGHT, wrist=behind),
        with_hand(replace(clip, clip_id="bent"), Hand.RIGHT, theta=bent),
        with_hand(replace(clip, clip_id="still"), Hand.RIGHT, wrist=np.tile(right.wrist[:1], (len(right.wrist), 1))),
    ]
    told = {
        ("swapped", "both", "sides"),
        ("swapped", "left", "bend"),
        ("swapped", "right", "bend"),
        ("mirrored", "left", "bend"),
        ("jump", "right", "speed"),
        ("far", "right", "reach"),
        ("behind", "right", "behind"),
        ("bent", "right", "finger"),
        ("still", "right", "still"),
    }
    return clips, told


def test_every_planted_mistake_is_an_outlier_and_nothing_else_is(videos, tmp_path):
    clips, told = planted(videos[0])
    assert kinds([measure(row, clip) for row, clip in enumerate(clips)]) == told
    page = Inspection(write_inspection(write_manifest(clips, tmp_path / "m.parquet").path))
    listed = page.texts("motion")
    assert any(re.match(r"jump \| take \| right \| wrist jumps \| 12\.\d m/s \| 5 m/s", line) for line in listed)
    assert any(re.match(r"swapped \| take \| both \| .* \| 2\d cm \| 5 cm", line) for line in listed)
    assert any(re.match(r"far \| take \| right \| .* \| 2\.5\d m \| 1\.5 m", line) for line in listed)
    assert {line.split(" | ")[0] for line in listed} >= {name for name, *_ in told}
    assert not any(line.startswith("fine ") for line in listed)
    assert "Unlikely motion: 7 of 8 measured clips." in page.sections["warnings"]
    # All but the first clip are marked among the frames.
    assert sum(text == "wrist jumps" for _, text in page.badges) == 1
    left, right = page.figure("Wrist x")["data"]
    assert left["name"] == "left hand" and sum(left["y"]) == pytest.approx(1, abs=1e-2)
    assert np.average(left["x"], weights=left["y"]) < 0 < np.average(right["x"], weights=right["y"])


def test_millimetres_never_come_this_far(tmp_path):
    clip = make_clip("cup", None)
    wrong = with_hand(clip, Hand.LEFT, wrist=1000 * clip.hands[0].wrist)
    with pytest.raises(ManifestError, match="left_wrist"):
        write_manifest([wrong], tmp_path / "m.parquet")


def test_no_speed_is_measured_as_no_outlier():
    clip = make_clip("cup", None)
    alone = with_hand(clip, Hand.RIGHT, valid=np.arange(61) == 9)
    motion = measure(0, alone)
    assert len(motion.hands[Hand.RIGHT].values["speed"]) == 0 and kinds([motion]) == set()


def test_histograms_hold_all_values():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 1, 5000), [1e6, -1e6]])
    figure = histogram({"a": (values, "@c1"), "b": (np.zeros(0), "@c2"), "c": (np.ones(7), "@c3")}, "m")
    a, c = figure["data"]
    assert sum(a["y"]) == pytest.approx(1, abs=1e-3) and sum(c["y"]) == pytest.approx(1)
    assert -4 < a["x"][0] < a["x"][-1] < 4 and figure["layout"]["showlegend"]
    assert np.ptp(histogram({"a": (np.zeros(9), "@c1")}, "m")["data"][0]["x"]) > 0


# --- pictures


def test_what_cannot_be_read_is_told_with_the_reason(videos, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    clips = [
        make_clip("good", videos[0]),
        make_clip("bad", broken),
        make_clip("gone", tmp_path / "gone.mp4"),
        make_clip("torn", videos[1]),
    ]
    path = write_manifest(clips, tmp_path / "m.parquet").path
    place = Manifest(path).address(3)
    data = bytearray(Path(place.file).read_bytes())
    data[place.offset + 40] ^= 255
    Path(place.file).write_bytes(data)
    page = Inspection(write_inspection(path))
    text = page.sections["sheet"]
    assert page.source.count("data:image/jpeg;base64,") == 3  # the boundary frames of one clip
    assert "broken.mp4" in text and "Invalid data" in text and "no such file" in text
    assert re.search(r"cannot be read.*3.*row at byte", re.sub(r"\s+", " ", text))
    warned = page.sections["warnings"]
    assert "No readable video: 2 of 3 clips drawn." in warned
    assert "Not to be read from the manifest: 1 sampled row." in warned


def test_frames_that_show_nothing_are_told(videos, tmp_path):
    dark, grey = tmp_path / "dark.mp4", tmp_path / "grey.mp4"
    write_mp4(dark, (noise(9) // 24 for _ in range(4 * FPS)), FPS)
    write_mp4(grey, (np.full((HEIGHT, WIDTH, 3), 130, np.uint8) for _ in range(4 * FPS)), FPS)
    clips = [make_clip("night", dark), make_clip("fog", grey), make_clip("day", videos[0])]
    page = Inspection(write_inspection(write_manifest(clips, tmp_path / "m.parquet").path))
    assert "Very dark: 3 frames in 1 of 3 clips drawn. night" in re.sub(r"\s+", " ", page.sections["warnings"])
    assert "Blank: 3 frames in 1 of 3 clips drawn. fog" in re.sub(r"\s+", " ", page.sections["warnings"])
    assert Counter(text for _, text in page.badges)["dark"] == 3


def test_a_picture_is_blank_with_a_skeleton_on_it_and_not_with_half_a_table():
    image = Image.new("RGB", (320, 240), (90, 90, 90))
    assert fault(image) == "blank"
    draw = ImageDraw.Draw(image)
    for i in range(20):
        draw.line([(10 * i, 20), (10 * i + 20, 60)], fill=(255, 150, 54), width=3)
    assert fault(image) == "blank"
    draw.rectangle((0, 120, 320, 240), fill=(140, 100, 60))
    assert fault(image) is None
    assert fault(Image.new("RGB", (32, 24), (8, 8, 8))) == "dark"


# --- warnings


def test_nothing_stands_out_in_a_sound_manifest(videos, tmp_path):
    assert findings_of(sound(videos), tmp_path / "m") == []
    page = Inspection(write_inspection(tmp_path / "m", tmp_path / "page.html"))
    assert "Nothing stands out." in page.sections["warnings"] and ("badge good", "nothing stands out") in page.badges
    assert any(
        line.startswith("take | 3 | 3 of 3 | 3 of 3 | 0 of 3 | 96 × 72 | 30 |") for line in page.texts("sources")
    )


def damage(name: str, clips: list[Clip], videos: list[Path]) -> list[Clip | Rejection]:
    cup, pan, lid, jar, box = clips
    if name == "lost":
        valid = np.arange(61) % 15 > 0
        cup = with_hand(cup, Hand.LEFT, valid=valid)
    changed: dict[str, list[Clip | Rejection]] = {
        "wild at full speed": [cup, pan, lid, indexed(replace(jar, time_scale=1.0)), box],
        "slowed lab": [cup, pan, indexed(replace(lid, time_scale=0.5)), jar, box],
        "no val": [cup, pan, replace(lid, split="train"), jar, box],
        "no train": [cup, pan, lid, replace(jar, split="val"), box],
        "video in both": [cup, replace(pan, split="val"), lid, jar, box],
        "clip in both": [cup, pan, lid, jar, box, replace(cup, split="val", task_type="continuation")],
        "no labels": [replace(c, hands=(UNTRACKED,) * 2, pose_time_s=np.zeros(0, np.float32)) for c in clips],
        "lost": [cup, pan, lid, jar, box],
        "quarantined": [*clips, replace(jar, clip_id="short", end_s=0.2)],
        "one text": [*clips, *(replace(jar, clip_id=f"jar{i}") for i in range(4))],
        "no index": [replace(cup, packets=None), pan, lid, jar, box],
        "no camera": [cup, replace(pan, camera=None), lid, jar, box],
        "rate": [cup, pan, replace(lid, fps=60.0), jar, box],
        "shape": [cup, pan, lid, jar, replace(box, camera=replace(CAMERA, width=72))],
        "swapped": [replace(c, hands=c.hands[::-1]) for c in (cup, pan)] + [lid, jar, box],
        "camera": [cup, pan, lid, jar, replace(box, camera=replace(CAMERA, fx=900.0))],
    }
    if name == "one text":
        return [replace(c, instructions=("Work.",)) if c.source == "street" else c for c in changed[name]]  # pyright: ignore
    return changed[name]


@pytest.mark.parametrize(
    "name,level,text",
    [
        ("wild at full speed", "bad", r"street: 1 wild row with time_scale 1\."),
        ("slowed lab", "bad", r"take: 1 lab row with time_scale 0\.5\."),
        ("no val", "warn", r"Without val rows: take\."),
        ("no train", "warn", r"Without train rows: street\."),
        ("video in both", "bad", r"In both train and val: 1 video\. .*0\.mp4"),
        ("clip in both", "bad", r"In both train and val: 1 clip\. .*cup"),
        ("no labels", "warn", r"No chunk is labelled\."),
        ("lost", "warn", r"take: 50% of the left hand's chunks are lost"),
        ("quarantined", "warn", r"Quarantined on writing: 1 row\. Most often: end_s: expected at least one chunk"),
        ("one text", "warn", r"street: one instruction for all 6 sampled clips\. “Work\.”"),
        ("no index", "warn", r"No packet index: 1 of 5 sampled clips with a video\."),
        ("no camera", "warn", r"No camera: 1 of 4 sampled clips with video and poses\. .*pan"),
        ("rate", "warn", r"Another frame rate than the video's: 1 of 5 clips drawn\. lid: 60 .* 30 "),
        (
            "shape",
            "warn",
            r"Camera of another shape than the video: 1 of 5 clips drawn\. box: camera for 72 × 72, video 96 × 72\.",
        ),
        ("swapped", "bad", r"take: the left wrist is right of the right one in 2 of 2 two-handed clips"),
        ("swapped", "bad", r"take: the fingers of the left hand bend backwards in 2 of 2 clips"),
        ("camera", "bad", r"street: only 0% of the left wrists project into the picture"),
    ],
)
def test_warnings_name_what_is_wrong(name, level, text, videos, tmp_path):
    found = findings_of(damage(name, sound(videos), videos), tmp_path / "m")
    matching = [finding for finding in found if re.search(text, f"{finding.text} {finding.detail}")]
    assert [finding.level for finding in matching] == [level], found
    # Nothing else is claimed, but for what follows from it.
    follows = {"clip in both": 2, "swapped": 4}
    assert len(found) == follows.get(name, 1), found


# --- quarantine


def test_quarantined_rows_are_summed_up_by_reason(videos, tmp_path):
    rejections = [
        Rejection(f"r{i}", "films", f"/films/{i}.mp4", f"a video that opens: video /films/{i}.mp4: cut at {i}.5 s")
        for i in range(5)
    ]
    short = [make_clip(f"s{i}", videos[0], end_s=0.1 * (i + 1)) for i in range(2)]
    path = write_manifest(
        [*rejections, *short, make_clip("a", videos[0])], tmp_path / "set", on_error="quarantine"
    ).path
    pq.write_table(pq.read_table(f"{path}/errors/rows.parquet").slice(0, 1), f"{path}/errors/other.parquet")
    found = read_quarantine(Manifest(path))
    assert found.rows == 8 and len(found.files) == 2
    counts = {reason: known.rows for reason, known in found.reasons.items()}
    assert counts["a video that opens: video FILE: cut at # s"] == 6 and next(iter(counts)).startswith("a video")
    assert counts["end_s: expected at least one chunk (N >= 1, 1 s of model time)"] == 2
    page = Inspection(write_inspection(path, tmp_path / "page.html"))
    assert "8" in page.tile("Quarantined")
    assert any(
        re.match(r"a video that opens.* \| 6 \| films \(6\) \| row \d", line) for line in page.texts("quarantine")
    )
    single = write_manifest([*rejections, make_clip("a", videos[0])], tmp_path / "one.parquet", on_error="quarantine")
    write_manifest([*short, make_clip("a", videos[0])], tmp_path / "two.parquet", on_error="quarantine")
    assert read_quarantine(Manifest(single.path)).rows == 5
    write_manifest([make_clip("a", videos[0])], tmp_path / "three.parquet")
    assert read_quarantine(Manifest(tmp_path / "three.parquet")).rows == 0
    for damage in (b"junk", Path(f"{path}/part-00000.parquet").read_bytes()):
        Path(f"{path}/errors/other.parquet").write_bytes(damage)
        with pytest.raises(ManifestError, match=r"other\.parquet: .* expected an errors table"):
            read_quarantine(Manifest(path))


def test_reasons_keep_what_a_rule_says_and_drop_what_is_a_row_s_own():
    rule = "row 3 (clip x (2)): right_wrist is 21.5, expected a length of at most 20 m"
    assert reason_of(rule) == "right_wrist: expected a length of at most 20 m"
    assert reason_of("row 3 (clip x): clip is None, expected an episode: s3://b/a 1.npy") == "an episode: FILE FILE"
    assert reason_of("something else 7") == "something else 7"


# --- the page


EVIL = "</script><script>alert(1)</script><img src=http://evil.example/x onerror=alert(1)>\"'&"


def test_nothing_of_the_manifest_becomes_markup(videos, tmp_path):
    clips = [
        replace(make_clip(EVIL, videos[0]), source=EVIL, instructions=(EVIL,)),
        replace(make_clip("b", tmp_path / EVIL.replace("/", "_"), ""), instructions=(EVIL,)),
        replace(planted(videos[0])[0][1], clip_id="odd" + EVIL, source=EVIL),
        replace(make_clip("d", videos[0]), task_type="description", instructions=(), description=EVIL),
    ]
    bad = Rejection(EVIL, EVIL, EVIL, EVIL)
    path = write_manifest([*clips, bad], tmp_path / "m.parquet", on_error="quarantine").path
    page = Inspection(write_inspection(path))
    assert page.tags.count("script") == 3 and not re.search(r"<(img|script)[^>]*(evil|alert)", page.source)
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    for section in ("warnings", "makeup", "sources", "motion", "sheet", "quarantine"):
        assert EVIL in page.sections[section], section


def test_nothing_is_loaded_and_the_same_manifest_gives_the_same_page(videos, tmp_path, monkeypatch):
    monkeypatch.undo()  # the real plotly
    path = write_manifest(sound(videos), tmp_path / "set").path
    first = write_inspection(path, samples=3, seed=1)
    assert first == tmp_path / "set" / "inspect.html"
    text = first.read_text("utf-8")
    assert html.plotly_js() in text
    page = Inspection(first)
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert not re.search(r"@import|url\((?!#)", text.replace(html.plotly_js(), ""))
    assert set(page.charts) == set(page.figures) and len(page.charts) == 7
    assert write_inspection(path, tmp_path / "again.html", samples=3, seed=1).read_text("utf-8") == text
    assert [file.name for file in first.parent.glob(".inspect*")] == []
    assert len(Manifest(path)) == 5  # the page beside the parts does no harm


def test_command_line(videos, tmp_path, capsys):
    path = write_manifest(sound(videos), tmp_path / "m.parquet").path
    assert main(["inspect", path, "--samples", "2", "--seed", "3"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "m.inspect.html")
    assert "2 clips drawn and 4 measured, seed 3" in (tmp_path / "m.inspect.html").read_text("utf-8")
    assert main(["inspect", path, "--out", str(tmp_path / "deep" / "page.html")]) == 0
    assert (tmp_path / "deep" / "page.html").is_file()
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err
    with pytest.raises(UserError, match="samples"):
        write_inspection(path, samples=0)


def test_a_manifest_on_a_bucket(videos, tmp_path, s3_endpoint, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="sets")
    client.upload_file(str(videos[0]), "sets", "m/v/0.mp4")
    clips = [make_clip("cup", "s3://sets/m/v/0.mp4"), make_clip("short", videos[0], end_s=0.1)]
    path = write_manifest(clips, "s3://sets/m", on_error="quarantine").path
    assert default_page(path) == Path("m.inspect.html")
    page = Inspection(write_inspection(path, tmp_path / "page.html"))
    assert page.source.count("data:image/jpeg;base64,") == 3 and "1" in page.tile("Quarantined")
    assert "s3://sets/m/errors" in re.sub(r"\s+", "", page.sections["quarantine"])
