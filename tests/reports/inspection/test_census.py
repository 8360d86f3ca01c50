"""The page's numbers are those of the rows, and the rows it draws are drawn alike."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jala_ray.data.manifest import rowfile
from jala_ray.data.manifest.table import Manifest, write_manifest
from jala_ray.data.synthetic import WorldConfig, generate
from jala_ray.hands.resample import labelled_chunks
from jala_ray.reports.inspection import page as inspect
from jala_ray.reports.inspection.census import CellDraw, Census, in_turns, take_census
from jala_ray.reports.inspection.page import write_inspection
from jala_ray.types import Clip, Hand, HandState, ManifestError
from tests.reports.inspection.pages import ABSENT, UNTRACKED, Inspection, make_clip, with_hand


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
