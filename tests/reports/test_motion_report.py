"""The page of a motion evaluation: its numbers are those it was given, nothing on it is markup or loaded, and all of it shows."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from jala_ray.evaluation.latent_space.latents import summary as latent_summary
from jala_ray.evaluation.records import ClipRecord, Evaluation, HandRecord
from jala_ray.evaluation.scores import PELA_TABLE_1, score_clips, summarise
from jala_ray.reports.kit import html
from jala_ray.reports.kit.clip_videos import ClipVideo, clip_video
from jala_ray.reports.motion.inputs import page_latents, page_scores
from jala_ray.reports.motion.page import motion_page
from jala_ray.reports.motion.tables import PAPER_TITLE, REFERENCES_TITLE, PageScores
from jala_ray.types import Hand, UserError
from jala_ray.video.write import write_mp4
from tests.evaluation.test_latents import planted as planted_latents
from tests.reports.browser import open_browser
from tests.reports.motion_pages import (
    METRICS,
    ROWS,
    MotionPage,
    line,
    make_evaluation,
    make_latents,
    make_scores,
    planted,
)
from tests.reports.test_clip_videos import FPS, HEIGHT, ROW, WIDTH, make_clip, make_record

SECTIONS = (
    "Warnings",
    "Errors",
    "Breakdown",
    "Over the horizon",
    "Clips",
    "Latent space",
    "Map of h and z",
    "Failures",
    "Facts",
)


@pytest.fixture
def no_plotly(monkeypatch):
    """The 5 MB script is inlined as it is; parsing it in every test would only cost time."""
    monkeypatch.setattr(html, "plotly_js", lambda: "/* plotly */")


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[ClipVideo]:
    """Of three picks: two that play, one without a camera, and one that failed."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    write_mp4(path, (np.full((HEIGHT, WIDTH, 3), 60 + i, np.uint8) for i in range(91)), FPS)
    record = make_record(-0.05, 0.06)
    hand = record.hands[0]
    record = replace(record, hands=(replace(hand, predicted={"jala": hand.predicted[ROW]}),))
    made = [
        clip_video(make_clip(path), record, "jala", height=96, seconds=1.0),
        replace(clip_video(make_clip(path, camera=None), record, "jala", height=96, seconds=1.0), clip_id="b"),
    ]
    return [*made, ClipVideo("broken", "jala", problem="a video that does not decode")]


def test_every_section_stands_and_nothing_is_loaded(tmp_path, no_plotly, videos):
    page = MotionPage(tmp_path, make_evaluation(), make_scores(), videos, {"jala": make_latents()})
    assert [match for match in re.findall(r"<h2>([^<]*)</h2>", page.source)] == list(SECTIONS)
    assert all(a.startswith(("#", "data:")) for a in page.addresses)
    assert page.source.count("data:video/mp4;base64,") == 2 == page.source.count("data:image/jpeg;base64,")
    assert set(page.charts) == set(page.figures)
    assert ("badge warn", "1 failed") in page.badges


def test_what_a_reader_is_warned_of_stands_first(tmp_path, no_plotly):
    """Both models of the planted numbers are nearer than holding still; one is then not, and finds no more of its chunks than chance."""
    page = MotionPage(tmp_path, make_evaluation(), make_scores(), [], {"jala": make_latents()})
    assert "Nothing stands out." in page.text("warnings")
    scores, latents = make_scores(), make_latents()
    scores["table"]["no_align"]["wild"]["mpjpe"]["mean"] = 99.0
    latents["retrieval"]["recall1"] = 0.03125
    page = MotionPage(tmp_path, make_evaluation(), scores, [], {"jala": latents, "no_align": "too few clips"})
    text = page.text("warnings")
    assert (
        "Wild: no_align is worse than holding still. MPJPE 99.00 cm, 17.25 cm held still, 474% above, 7 clips" in text
    )
    assert "jala: matched pairs of h and z are no nearer than shuffled ones. recall at 1 3.1%, by chance 3.1%" in text
    assert [kind for kind, name in page.badges if name == "check"] == ["badge bad"] * 2
    assert ("badge bad", "2 warnings") in page.badges


def test_the_main_table_has_every_planted_number(tmp_path, no_plotly):
    page = MotionPage(tmp_path, make_evaluation(), make_scores(), [])
    for row in ROWS:
        (cells,) = page.cells("errors", row)
        lab, wild = ([planted(row, domain, metric) for metric in METRICS] for domain in ("lab", "wild"))
        assert cells == [*(f"{v:.2f}{v - 0.5:.2f} – {v + 0.75:.2f}" for v in lab), *(f"{v:.2f}" for v in wild)]
    heads = [text for row in page.rows["errors"][:2] for text, _ in row]
    assert heads == ["", "Lab, 40 clips", "Wild, 7 clips", "", *("MPJPE", "PA-MPJPE", "MWTE", "MDE") * 2]
    assert page.source.count('class="number best"><span title="1.25 cm, 40 clips">1.25<') == 1, (
        "the better model's is bold"
    )


def test_references_and_the_papers_rows_are_set_apart(tmp_path, no_plotly):
    page = MotionPage(tmp_path, make_evaluation(), make_scores(), [])
    names = [row[0][0] for row in page.rows["errors"]]
    order = [
        next(i for i, name in enumerate(names) if name.startswith(first)) for first in ("Models", "jala", "no_align")
    ]
    order += [names.index(REFERENCES_TITLE), next(i for i, n in enumerate(names) if n.startswith("floor"))]
    order += [names.index(PAPER_TITLE), *(names.index(name) for name in PELA_TABLE_1)]
    assert order == sorted(order) and "not comparable in absolute numbers" in PAPER_TITLE
    assert page.cells("errors", "JALA-dino") == [["7.16", "0.91", "5.77", "7.24", "11.02", "1.12", "9.79", "11.04"]]
    assert "the tokenizer's reconstruction" in names[order[4]]


def test_headline_tiles_name_the_best_model_and_the_best_trivial_baseline(tmp_path, no_plotly):
    page = MotionPage(tmp_path, make_evaluation(), make_scores(), [])
    lab = re.sub(r"\s+", " ", page.tile("MPJPE, Lab"))
    assert "1.25 cm" in lab and "jala, 0.75 – 2.00" in lab and "83% below hold_first" in lab
    assert "11.36 cm" in page.tile("PA-MPJPE, Wild")
    assert "3 6 s of motion" in re.sub(r"\s+", " ", page.tile("Clips"))
    worse = make_scores()
    worse["table"]["hold_first"] = {"lab": line("jala", "lab")}
    worse["table"]["jala"] = worse["table"]["no_align"] = {"lab": line("no_align", "lab")}
    page = MotionPage(tmp_path, make_evaluation(), worse, [])
    assert ("badge bad", "160% above hold_first") in page.badges


def test_breakdowns(tmp_path, no_plotly):
    page = MotionPage(tmp_path, make_evaluation(), make_scores(), [])
    cells = page.cells("breakdown", "jala")
    means = [f"{planted('jala', 'lab', m):.2f}" for m in METRICS]
    assert len(cells) == 5 and [text[:4] for text in cells[0]] == means
    assert [text[:5] for text in cells[1]] == [f"{planted('jala', 'wild', m):.2f}" for m in METRICS]
    titles = [row[0][0] for row in page.rows["breakdown"] if len(row) == 1]
    assert titles == ["hot3d30 clips", "ego4d7 clips", "generation39 clips", "left20 clips", "right20 clips"]
    jala, no_align = page.figure("MPJPE by source")["data"]
    assert (jala["x"], jala["y"]) == (["hot3d", "ego4d"], [1.25, 11.25]) and no_align["x"] == ["hot3d"]


def test_the_horizon_has_a_line_a_row(tmp_path, no_plotly):
    scores = make_scores()
    scores["horizon"]["wild"]["jala"] = [{"second": 1, "mpjpe": 5.0, "low": 4.0, "high": 7.5, "clips": 50}]
    scores["horizon"]["wild"]["floor"][1] = {"second": 2, "mpjpe": None, "clips": 0}
    page = MotionPage(tmp_path, make_evaluation(), scores, [])
    lab, wild = page.figure("MPJPE over time, Lab"), page.figure("MPJPE over time, Wild")
    assert [trace["name"] for trace in lab["data"]] == list(ROWS)
    assert lab["data"][1]["y"] == pytest.approx([planted("no_align", "lab", "mpjpe") + s for s in (1, 2)])
    assert lab["layout"]["xaxis"]["ticktext"] == ["1<br>n=49", "2<br>n=48"]
    assert wild["data"][0]["error_y"] | {"array": [2.5], "arrayminus": [1.0]} == wild["data"][0]["error_y"]
    assert wild["data"][2]["y"][1] is None
    styles = {(trace["line"]["color"], trace["line"]["dash"]) for trace in lab["data"]}
    assert len(styles) == len(ROWS)


def test_clips_show_words_scores_and_what_became_of_their_video(tmp_path, no_plotly, videos):
    page = MotionPage(tmp_path, make_evaluation(), make_scores(), [videos[0], videos[2]])
    text = page.text("clips")
    assert "best wave" in text and "MPJPE 3.25 cm · MDE n/a" in text
    assert "Lab · test · generation · 2 s · a" in text
    assert "The first 1 of 2 s." in text
    assert "No video was made of this clip." in text and "There is no video: a video that does not decode" in text
    scores = make_scores()
    scores["picked"] = [pick | {"clip_id": "a"} for pick in scores["picked"]]
    page = MotionPage(tmp_path, make_evaluation(), scores, videos)
    assert page.source.count("data:video/mp4") == 1, "one clip is shown once, whatever it was picked for"
    assert [name for _, name in page.badges if name in ("best", "median", "worst")] == ["best", "median", "worst"]


def test_the_latent_space(tmp_path, no_plotly):
    page = MotionPage(tmp_path, make_evaluation(), make_scores(), [], {"jala": make_latents()})
    heads = next(row for row in page.rows["latents"] if row[0][0] == "Target")
    assert [text for text, _ in heads] == ["Target", "Clips", "z", "h19", "first frame alone (control)"]
    assert page.cells("latents", "wrist") == [["Lab", " 0.750.65 to 0.85", " 0.500.40 to 0.60", " -0.25-0.35 to -0.15"]]
    widths = re.findall(r"width:(\d+\.\d+)%", page.source)
    assert widths[:3] == ["75.00", "50.00", "0.00"]
    tiles = [re.sub(r"\s+", " ", tile).strip() for tile in page.tiles[-3:]]
    assert tiles == ["Recall at 1 62.5% by chance 3.1%", "Recall at 5 87.5%", "Median rank 1.00 of 32"]
    lab, wild = page.figure("t-SNE of h")["data"]
    assert (lab["name"], lab["x"], lab["y"], lab["text"]) == (
        *("Lab, right", [1.5, 2.5] * 13, [3, 2] * 13, ["hot3d", "arctic"] * 13),
    )
    assert wild["name"] == "Wild, left" and wild["marker"]["color"] != lab["marker"]["color"]
    nothing = {"probes": [], "retrieval": None, "tsne": {}}
    empty = MotionPage(tmp_path, make_evaluation(), make_scores(), [], {"jala": nothing})
    assert "No probe was fitted." in empty.text("latents") and "Retrieval was not measured." in empty.text("latents")


def test_the_latent_spaces_of_several_models(tmp_path, no_plotly):
    spaces = {"jala": make_latents(), "no_align": make_latents(), "lapa": "4 clips are too few"}
    page = MotionPage(tmp_path, make_evaluation(), make_scores(), [], spaces)
    for title in ("jala: t-SNE of h", "jala: t-SNE of z", "no_align: t-SNE of h", "no_align: t-SNE of z"):
        assert len(page.figure(title)["data"]) == 2
    text = page.text("latents")
    assert "jala: Linear probes" in text and "no_align: Retrieval" in text
    assert "lapa: There is no latent space to show: 4 clips are too few" in text


def test_few_clips_have_no_interval_and_few_chunks_no_map(tmp_path, no_plotly):
    latents = make_latents()
    latents["tsne"] = {name: {key: v[:17] for key, v in points.items()} for name, points in latents["tsne"].items()}
    scores = make_scores()
    scores["horizon"]["wild"]["jala"] = [{"second": 1, "mpjpe": 5.0, "low": 4.0, "high": 7.5, "clips": 9}]
    page = MotionPage(tmp_path, make_evaluation(), scores, [], {"jala": latents})
    cells = page.cells("errors", "jala")[0]
    assert cells[0] == "1.250.75 – 2.00" and cells[4] == "11.25", "40 clips of Lab, 7 of Wild"
    assert "fewer than 10 clips have no interval" in page.text("errors")
    assert "–" not in page.tile("MPJPE, Wild") and "–" in page.tile("MPJPE, Lab")
    assert page.figure("MPJPE over time, Wild")["data"][0]["error_y"]["array"] == [None]
    assert "No t-SNE is drawn of 17 chunks" in page.text("latents") and "t-SNE of h" not in page.source
    many = make_scores()
    many["table"] = {row: {"lab": line(row, "lab")} for row in ROWS}
    assert "fewer than" not in MotionPage(tmp_path, make_evaluation(), many, []).text("errors")


def test_failures_and_facts(tmp_path, no_plotly):
    page = MotionPage(tmp_path, make_evaluation(), make_scores(), [])
    assert "1 of 4 clips" in page.text("failures") and page.cells("failures", "dead") == [
        ["test", "its video is cut off"]
    ]
    facts = page.text("facts")
    assert "python jobs/evaluate.py 'a b'" in facts and "seed 7" in facts and "/runs/x" in facts
    many = [make_record(0, 0, clip_id=f"c{i}", failure="gone", hands=()) for i in range(130)]
    text = MotionPage(tmp_path, make_evaluation(clips=many), make_scores(), []).text("failures")
    assert text.count("gone") == 100 and "30 more." in text


def test_an_evaluation_of_nothing_says_so(tmp_path, no_plotly):
    nothing = {key: {} for key in ("table", "by_source", "by_task", "by_hand", "horizon")}
    scores = make_scores(**nothing, rows=[], models=[], picked=[])
    page = MotionPage(tmp_path, make_evaluation(clips=[], facts={}), scores, [])
    for section, reason in {
        "errors": "No clip was scored.",
        "breakdown": "No clip was scored.",
        "horizon": "No second of motion was scored.",
        "clips": "there is none to show",
        "latents": "was not examined",
        "failures": "Every clip was evaluated.",
    }.items():
        assert reason in page.text(section)
    assert page.figures == {}


def test_undefined_numbers_are_told(tmp_path, no_plotly):
    scores = make_scores()
    scores["table"]["jala"]["lab"]["mde"] = {"mean": None, "low": None, "high": None, "clips": 0}
    scores["table"]["jala"]["lab"]["mwte"] |= {"low": None, "high": None}
    del scores["table"]["mean_motion"]["wild"]
    page = MotionPage(tmp_path, make_evaluation(), scores, [])
    assert page.cells("errors", "jala")[0][2:4] == [f"{planted('jala', 'lab', 'mwte'):.2f}", "n/a"]
    assert page.cells("errors", "mean_motion")[0][4:] == ["n/a"] * 4


def test_what_is_not_known_is_refused():
    for key in make_scores():
        with pytest.raises(UserError, match="scores"):
            motion_page(make_evaluation(), {k: v for k, v in make_scores().items() if k != key}, [])
    with pytest.raises(UserError, match=r"scores\.models.*jula"):
        motion_page(make_evaluation(), make_scores(models=["jula"]), [])
    with pytest.raises(UserError, match="latents"):
        motion_page(make_evaluation(), make_scores(), [], {"jala": make_latents() | {"umap": {}}})


EVIL = "</script></title><script>alert(1)</script><img src=http://evil.example/x onerror=alert(1)>\"'&"


def test_nothing_given_becomes_markup(tmp_path, no_plotly, videos):
    def evil(value: Any) -> Any:
        """Every name replaced, also in keys that are data."""
        if isinstance(value, dict):
            return {key if key in KEPT else EVIL + key: evil(inner) for key, inner in value.items()}
        return (
            [evil(inner) for inner in value] if isinstance(value, list) else EVIL if isinstance(value, str) else value
        )

    KEPT = {*make_scores(), *make_latents(), *make_latents()["retrieval"], *make_latents()["tsne"]["z"], *METRICS}
    KEPT |= {"lab", "wild", "mean", "low", "high", "clips", "second", "kind", "row", "clip_id", "domain", "scores"}
    KEPT |= {"subject", "group", "target", "r2"}
    scores, latents = evil(make_scores()), evil(make_latents())
    scores |= {"metrics": list(METRICS), "rows": [EVIL + row for row in ROWS], "models": [EVIL + ROWS[0]]}
    record = make_record(0, 0, clip_id=EVIL, instruction=EVIL, source=EVIL)
    dead = make_record(0, 0, clip_id=EVIL, source=EVIL, failure=EVIL, hands=())
    evaluation = Evaluation(EVIL, (EVIL,), [record, dead], {EVIL: EVIL, "command": EVIL})
    shown = [replace(videos[0], clip_id=EVIL, row=EVIL), ClipVideo(EVIL, EVIL + "2", problem=EVIL)]
    scores["picked"] += [scores["picked"][0] | {"row": EVIL + "2"}]
    page = MotionPage(tmp_path, evaluation, scores, shown, {EVIL: latents, EVIL + "2": EVIL})
    assert page.tags.count("script") == 3 and page.tags.count("video") == 1 and "img" not in page.tags
    assert all(a.startswith(("#", "data:")) for a in page.addresses)
    assert all(EVIL in page.sections[name] for name in ("errors", "breakdown", "clips", "latents", "failures", "facts"))
    names = [trace["name"] for figure in page.figures.values() for trace in figure["data"]]
    assert names and not any("<" in name for name in names), "charts read a kind of HTML"


# --- what the page is given, from the summaries ----------------------------------------------------------------------


def moved(name: str, shift: float, **change: Any) -> ClipRecord:
    """A clip whose model row is `shift` m off everywhere, the floor nowhere."""
    record = make_record(0.0, 0.0, clip_id=name, **change)
    true = record.hands[0].true
    hand = HandRecord(Hand.RIGHT, record.hands[0].valid, true, {"jala": true + np.float32(shift), "floor": true})
    return replace(record, hands=(hand,))


def test_summaries_become_what_the_page_takes(tmp_path, no_plotly):
    off = {"a": 0.01, "b": 0.02, "c": 0.04}
    clips = [moved(name, shift) for name, shift in off.items()]
    clips += [moved("w", 0.03, domain="wild", source="ego4d", chunks=2)]
    made = page_scores(summarise(score_clips(clips, ("jala", "floor")), resamples=50), ["jala"])
    assert made.keys() == PageScores.__annotations__.keys()
    cell = made["table"]["jala"]["lab"]["mpjpe"]
    assert (
        cell["mean"] == pytest.approx(100 * np.sqrt(3) * np.mean(list(off.values())), rel=1e-3) and cell["clips"] == 3
    )
    assert made["table"]["floor"]["wild"]["mpjpe"]["mean"] == pytest.approx(0, abs=1e-6)
    assert made["table"]["jala"]["wild"]["mpjpe"]["low"] is None, "one clip has no interval"
    assert list(made["by_source"]) == ["test", "ego4d"]
    assert list(made["by_hand"]) == ["right, Lab", "right, Wild"]
    assert list(made["by_task"]) == ["generation, Lab", "generation, Wild"]
    seconds = made["horizon"]["lab"]["jala"]
    assert [(point["second"], point["clips"]) for point in seconds] == [(1, 3), (2, 3)]
    picks = {(pick["domain"], pick["kind"]): pick for pick in made["picked"]}
    assert {place: pick["clip_id"] for place, pick in picks.items()} == {
        ("lab", "best"): "a",
        ("lab", "median"): "b",
        ("lab", "worst"): "c",
        ("wild", "best"): "w",
    }
    worst = picks["lab", "worst"]["scores"]
    assert list(worst) == list(METRICS) and worst["mwte"] == pytest.approx(4 * np.sqrt(3), rel=1e-3)
    page = MotionPage(tmp_path, make_evaluation(clips=clips), made, [])
    assert "6.93 cm" in page.text("clips")


def test_a_latent_summary_becomes_what_the_page_takes(tmp_path, no_plotly):
    found = latent_summary(planted_latents(24, wild=4))
    made = page_latents(found)
    assert made["probes"] == found["probes"]
    assert made["retrieval"]["recall1"] == 1.0 and made["retrieval"]["count"] == found["retrieval"]["all"]["count"]
    page = MotionPage(tmp_path, make_evaluation(), make_scores(), [], {"jala": made})
    names = {trace["name"] for trace in page.figure("t-SNE of z")["data"]}
    assert names == {"Lab, left", "Lab, right", "Wild, left", "Wild, right"}
    nothing = page_latents(latent_summary(planted_latents(8, wild=0, h={}, z=None, aligned_layer=None)))
    assert nothing["retrieval"] is None and nothing["tsne"] == {}
    MotionPage(tmp_path, make_evaluation(), make_scores(), [], {"jala": nothing})


# --- in a browser ----------------------------------------------------------------------------------------------------


def test_a_browser_shows_all_of_it_without_a_network(tmp_path, videos):
    path = tmp_path / "report.html"
    path.write_text(motion_page(make_evaluation(), make_scores(), videos, {"jala": make_latents()}), "utf-8")
    torn = tmp_path / "torn.html"
    # Without a chart the page has no plotly, which takes a browser seconds to read.
    bare = make_scores(horizon={}, by_source={})
    torn.write_text(motion_page(make_evaluation(), bare, [replace(videos[0], mp4=b"no video")]), "utf-8")
    with open_browser(tmp_path) as browser:
        browser.open(path)
        browser.wait("document.documentElement.dataset.drawn === 'yes'")
        browser.wait("[...document.querySelectorAll('video, img')].every((node) => node.dataset.loaded)")
        media = "[...document.querySelectorAll('video')].map((v) => [v.dataset.loaded, v.videoWidth, v.videoHeight, v.duration])"
        assert browser.evaluate(media) == [["yes", video.width, video.height, 1] for video in videos[:2]]
        assert browser.evaluate("document.querySelectorAll('.broken').length") == 0
        charts = "[...document.querySelectorAll('.chart')].map((node) => node.querySelectorAll('.trace').length)"
        assert browser.evaluate(charts) == [2, 5, 5, 2, 2]
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), "wider than its window"
        nav = "[...document.querySelectorAll('nav a')].every((a) => a.getBoundingClientRect().right <= innerWidth)"
        assert browser.evaluate(nav), "a section's name is cut off"
        browser.evaluate("document.querySelector('[data-play]').click()")
        browser.wait("[...document.querySelectorAll('video')].every((video) => !video.paused && video.currentTime > 0)")
        assert all(url.startswith(("file:", "data:", "blob:")) for url in browser.requests) and not browser.errors
        assert browser.screenshot().startswith(b"\x89PNG")
        browser.open(torn, width=390)
        browser.wait("document.querySelectorAll('video.broken').length === 1")
        assert browser.evaluate("document.querySelector('video.broken + .badge').textContent") == "does not load"
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), "wider than a telephone"
