import json
import math
import re
from html.parser import HTMLParser
from statistics import median

import pytest

from jala_ray.config import RunConfig
from jala_ray.parsing import override, to_dict
from jala_ray.reports.kit import html
from jala_ray.reports.kit.figures import MAX_POINTS, Chart, Line, smoothed, thin
from jala_ray.reports.run import quality
from jala_ray.reports.run.page import main, write_pretrain_report, write_tokenizer_report
from jala_ray.storage import patience
from jala_ray.types import UserError

SECTIONS = (
    *("Losses", "Validation", "Collapse monitors", "Sample frames", "Throughput", "Optimisation"),
    *("Motion tokenizer", "Quarantined rows", "Resume history", "Configuration", "Environment"),
)
VOID = {"br", "img", "meta", "hr", "input", "link"}


class Page(HTMLParser):
    """A parsed page: balanced tags, text by tile and section, addresses, inline data."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.stack, self.addresses, self.tags = [], [], []
        self.tiles, self.sections, self.charts = [], {}, []
        self.badges, self.scripts = [], []
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        self.close()
        assert not self.stack, f"unclosed {self.stack}"
        self.figures = json.loads(next(text for kind, text in self.scripts if kind == "application/json"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.addresses += [attrs[k] for k in ("src", "href", "data", "action", "srcset") if k in attrs]
        kind = attrs.get("class") or ""
        if kind == "tile":
            self.tiles.append("")
        if kind.startswith("badge"):
            self.badges.append((kind, ""))
        if kind == "chart":
            self.charts.append(attrs["id"])
        if tag == "script":
            self.scripts.append((attrs.get("type"), ""))
        if tag == "section":
            self.sections[attrs["id"]] = ""
        if tag not in VOID:
            self.stack.append((tag, kind, attrs.get("id")))

    def handle_endtag(self, tag):
        assert self.stack and self.stack[-1][0] == tag, (tag, self.stack[-3:])
        self.stack.pop()

    def handle_data(self, data):
        if self.stack and self.stack[-1][0] == "script":
            kind, text = self.scripts[-1]
            self.scripts[-1] = kind, text + data
            return
        for tag, kind, name in self.stack:
            if kind == "tile":
                self.tiles[-1] += data + " "
            if tag == "section":
                self.sections[name] += data + " "
            if kind.startswith("badge"):
                self.badges[-1] = kind, self.badges[-1][1] + data

    def tile(self, name):
        return next(text for text in self.tiles if text.startswith(name + " "))

    def figure(self, title):
        name = re.search(rf'id="([^"]+)" class="chart" role="img" aria-label="{re.escape(title)}"', self.source)
        assert name, f"no chart {title}"
        return self.figures[name[1]]


@pytest.fixture(autouse=True)
def small_plotly(monkeypatch):
    """The 5 MB script is inlined as it is; parsing it in every test would only cost time."""
    monkeypatch.setattr(html, "plotly_js", lambda: "/* plotly */")


def metric_rows(steps=40):
    for step in range(1, steps + 1):
        row = {
            "step": step,
            "epoch": 0,
            "loss": 9.0 - 0.1 * step,
            "loss_mcp": 6.0 - 0.05 * step,
            "loss_align": 0.5,
        }
        row |= {
            "loss_text": 2.0 / step if step % 2 else None,
            "mcp_accuracy": step / 100,
            "lr": 1e-4,
            "grad_norm": 1.5,
        }
        row |= {
            "samples_per_s": 10.0 + step % 3,
            "chunks_per_s": 30.0,
            "tokens_per_s": 4000.0,
            "data_wait": 0.125,
        }
        yield row | {"step_s": 1.5, "time_s": 1.5 * step, "attempt": 0, "monitor/rho": None}
        if step % 10 == 0:
            yield {"step": step, "attempt": 0, "monitor/rho": 0.01 * step, "monitor/effective_rank_z": 3.25}
            yield {"step": step, "attempt": 0, "val/lab/loss_mcp": 4.5 - step / 100, "val/wild/loss_mcp": 5.5}


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints" / "step_40").mkdir(parents=True)
    config = override(RunConfig(name="tiny"), {"train.steps": 40, "train.batch": 8})
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    (folder / "environment.json").write_text(json.dumps({"command": ["python", "jobs/x.py", "a b"], "seed": 7}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metric_rows()))
    errors = [{"clip_id": f"clip{i}", "field": "video", "reason": "no such <file>"} for i in range(60)]
    (folder / "errors.jsonl").write_text("".join(json.dumps(row) + "\n" for row in errors))
    return folder


def append(run_dir, *rows):
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_every_section_stands_and_nothing_is_loaded(run_dir):
    path = write_pretrain_report(run_dir)
    page = Page(path)
    assert path == run_dir / "report.html"
    assert all(re.search(f"<h2>{title}</h2>", page.source) for title in SECTIONS)
    assert all(a.startswith(("#", "data:")) for a in page.addresses), page.addresses
    assert not re.search(r"@import|url\(", html.asset("report.css"))
    assert set(page.charts) == set(page.figures)
    assert [p.name for p in run_dir.glob(".report*")] == []


def test_plotly_is_inlined_once(run_dir, monkeypatch):
    monkeypatch.undo()
    text = write_pretrain_report(run_dir).read_text("utf-8")
    script = html.plotly_js()
    assert text.count(script[:200]) == 1 and script in text
    assert "</script" not in script.lower()


def test_headline_numbers_are_those_of_the_metrics(run_dir):
    page = Page(write_pretrain_report(run_dir))
    assert "40 of 40" in page.tile("Steps")
    assert "320 8 a step" in page.tile("Samples")
    assert "5.000 last 10 %: 5.150" in re.sub(r" +", " ", page.tile("Loss"))
    assert "4.000" in page.tile("Masked chunk prediction")
    speeds = [row["samples_per_s"] for row in metric_rows() if "samples_per_s" in row]
    assert f"{median(speeds):.2f}" in page.tile("Samples per second")
    assert "12.5%" in page.tile("Data wait")
    assert "0.400 alive" in re.sub(r" +", " ", page.tile("rho"))
    assert "3.25 low rank" in re.sub(r" +", " ", page.tile("Effective rank of z"))
    assert ("badge good", "finished") in page.badges
    assert ("badge bad", "collapse warning") in page.badges
    assert ("badge warn", "60 quarantined") in page.badges


def test_logged_samples_win_over_steps_times_batch(run_dir):
    append(run_dir, {"step": 41, "attempt": 0, "samples": 313})
    assert "313" in Page(write_pretrain_report(run_dir)).tile("Samples")


def test_charts_hold_the_logged_values(run_dir):
    page = Page(write_pretrain_report(run_dir))
    raw, soft = page.figure("Description text")["data"]
    assert raw["x"] == list(range(1, 41, 2)) and raw["y"] == pytest.approx([2.0 / s for s in range(1, 41, 2)], rel=1e-5)
    assert soft["meta"] == "smooth" and len(soft["y"]) == 20
    lab, wild = page.figure("Masked chunk prediction") and [
        t for f in page.figures.values() for t in f["data"] if t["name"] in ("Lab", "Wild")
    ]
    assert (lab["x"], lab["y"]) == ([10, 20, 30, 40], pytest.approx([4.4, 4.3, 4.2, 4.1]))
    assert wild["y"] == [5.5] * 4
    rho = page.figure("Change sensitivity rho")
    assert rho["data"][0]["y"] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert any(s["type"] == "line" and s["y0"] == 0.05 for s in rho["layout"]["shapes"])
    assert any(s.get("y0") == 4 for s in page.figure("Effective rank")["layout"]["shapes"])


def test_the_loss_table_tells_which_terms_fall(run_dir):
    text = re.sub(r"\s+", " ", Page(write_pretrain_report(run_dir)).sections["losses"])
    assert "Total loss 8.750 5.150 5.000 -41.1% falls" in text
    assert "Latent alignment 0.5000 0.5000 0.5000 +0.0% does not fall" in text


def test_a_resume_is_drawn_and_told(run_dir):
    append(run_dir, *({"step": s, "loss": 1.0, "attempt": 1, "time_s": 500.0 + s} for s in (39, 40)))
    page = Page(write_pretrain_report(run_dir))
    assert ("badge", "resumed 1x") in page.badges
    assert "1.000" in page.tile("Loss")
    shapes = page.figure("Total loss")["layout"]["shapes"]
    assert [shape["x0"] for shape in shapes] == [39]
    assert "0 1 40 2 58 s 1 39 40 0 1 s" in re.sub(r"\s+", " ", page.sections["resumes"])


def test_quarantined_rows_are_counted_and_the_first_are_listed(run_dir):
    text = re.sub(r"\s+", " ", Page(write_pretrain_report(run_dir)).sections["quarantine"])
    assert "video 60" in text and "clip0 video no such <file>" in text
    assert text.count("no such <file>") == 50 and "10 more in errors.jsonl" in text


def test_every_setting_is_shown(run_dir):
    config = json.loads((run_dir / "config.json").read_text())
    config["objective"]["align"]["weight"] = 0.123456
    (run_dir / "config.json").write_text(json.dumps(config))
    page = Page(write_pretrain_report(run_dir))
    text = page.sections["configuration"]

    def leaves(node):
        for key, value in node.items():
            yield from leaves(value) if isinstance(value, dict) else [key]

    assert all(f" {key} " in f" {text}" for key in leaves(config))
    assert "0.123456" in text
    assert "python jobs/x.py 'a b'" in page.sections["environment"]


def test_an_empty_run_folder_says_what_is_absent(tmp_path):
    page = Page(write_pretrain_report(tmp_path, out=tmp_path / "deep" / "page.html"))
    for name, reason in {
        "losses": "No loss",
        "validation": "No validation",
        "monitors": "No monitor values",
        "frames": "No manifest was given",
        "throughput": "No throughput",
        "optimisation": "Neither",
        "tokenizer": "No tokenizer folder",
        "quarantine": "No row was quarantined",
        "resumes": "Nothing has been logged",
        "configuration": "no config.json",
        "environment": "no environment.json",
    }.items():
        assert reason in page.sections[name]
    assert ("badge warn", "nothing logged") in page.badges
    assert page.figures == {}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_run_is_called_so(run_dir, value):
    append(run_dir, {"step": 41, "loss": value, "attempt": 0})
    page = Page(write_pretrain_report(run_dir))
    assert ("badge bad", "diverged at step 41") in page.badges
    assert str(value) in page.tile("Loss")


def test_a_run_under_way_is_not_called_finished(run_dir):
    config = json.loads((run_dir / "config.json").read_text())
    config["train"]["steps"] = 1000
    (run_dir / "config.json").write_text(json.dumps(config))
    assert ("badge warn", "at step 40 of 1,000") in Page(write_pretrain_report(run_dir)).badges


EVIL = "</script></title><script>alert(1)</script><img src=http://evil.example/x onerror=alert(1)>\"'&"


def test_nothing_from_the_run_becomes_markup(run_dir):
    config = json.loads((run_dir / "config.json").read_text())
    config |= {"name": EVIL, EVIL: {EVIL: [EVIL]}}
    (run_dir / "config.json").write_text(json.dumps(config))
    (run_dir / "environment.json").write_text(json.dumps({"command": EVIL, EVIL: EVIL}))
    (run_dir / "errors.jsonl").write_text(json.dumps({"clip_id": EVIL, "reason": EVIL, EVIL: [EVIL]}))
    evil = {EVIL: 1.0, "loss" + EVIL: 2.0, "val/lab/" + EVIL: 1.0, "attempt": EVIL}
    append(run_dir, {"step": 41, **evil}, {"step": 42, **evil})
    (run_dir / "quality.json").write_text(json.dumps({EVIL: 1.0, "usage": {EVIL: [0.5, 0.5]}}))
    page = Page(write_pretrain_report(run_dir, tokenizer_dir=run_dir))
    assert page.tags.count("script") == 3 and "img" not in page.tags
    assert all(a.startswith(("#", "data:")) for a in page.addresses)
    assert EVIL in page.sections["configuration"] and EVIL in page.sections["quarantine"]


def test_elements_escape_text_and_attributes():
    assert html.el("p", "<b>", html.el("i", "&"), None, ["x"], class_='a"b', data_x=1, hidden=True, id=None) == (
        '<p class="a&quot;b" data-x="1" hidden>&lt;b&gt;<i>&amp;</i>x</p>'
    )


QUALITY = {
    "chunks": 90,
    "codes": 512,
    "mpjpe_cm": 0.815,
    "wrist_rotation_deg": 2.5,
    **{
        part: {"usage": [[0.9, 0.8], [0.7, 0.6]], "perplexity": [[300.0, 200.0], [250.0, 150.0]]}
        for part in ("wrist", "finger")
    },
}


def test_tokenizer_report(run_dir):
    (run_dir / "quality.json").write_text(json.dumps(QUALITY))
    append(run_dir, {"step": 41, "loss_rec_wrist": 0.5, "dead_codes": 3}, {"step": 42, "loss_rec_wrist": 0.25})
    page = Page(write_tokenizer_report(run_dir))
    assert "0.815 cm" in re.sub(r" +", " ", page.tile("MPJPE"))
    assert "2.50 degrees" in re.sub(r" +", " ", page.tile("Wrist rotation"))
    assert "0.2500" in page.tile("Reconstruction, wrist")
    usage = page.figure("Usage")["data"]
    names = [trace["name"] for trace in usage]
    assert names == ["wrist group 1", "wrist group 2", "finger group 1", "finger group 2"]
    assert usage[1]["y"] == [0.7, 0.6] and page.figure("Perplexity")["data"][0]["y"] == [300, 200]
    assert "dead_codes" in page.sections["other"]
    other = Page(write_pretrain_report(run_dir, tokenizer_dir=run_dir))
    assert "0.8150" in other.sections["tokenizer"]


def test_quality_of_any_form_is_split():
    scalars, series = quality.split({"a": {"b": [{"usage": [1, 2], "n": 3}]}, "note": "fine", "none": []})
    assert scalars == {("a", "b", "1", "n"): 3, ("note",): "fine", ("none",): []}
    assert series == {("a", "b", "1", "usage"): [1, 2]}


@pytest.mark.parametrize(
    ("level", "shown"), [(0.0, [0, 1]), (0.125, [0.0, 0.25]), (-3.0, [-6.0, 0.0]), (4000.0, [0.0, 8000.0])]
)
def test_a_constant_is_drawn_from_zero(level, shown):
    line = Line("n", [(step, level) for step in range(5)])
    for chart in (Chart("t", [line], loggable=True), Chart("t", [line], from_zero=True)):
        figure = chart.figure()
        assert figure["layout"]["yaxis"]["range"] == shown and not figure["loggable"]


def test_unknown_metrics_are_named_once_and_constants_are_a_line_of_a_table(run_dir):
    rows = [{"step": s, "attempt": 0, "loss_new": 1.0 / s, "rows": 8, "padding": s / 100} for s in (41, 42, 43)]
    append(run_dir, *rows)
    page = Page(write_pretrain_report(run_dir))
    assert "<h3>loss_new</h3></figcaption>" in page.source and page.source.count(">loss_new<") == 2
    assert '<h3>Total loss</h3><span class="note">loss</span>' in page.source
    assert page.figure("padding")["data"][0]["y"] == [0.41, 0.42, 0.43]
    assert 'aria-label="rows"' not in page.source
    assert "rows 8 43" in re.sub(r"\s+", " ", page.sections["other"])


def test_smoothing_has_no_lag_and_keeps_constants():
    line = [0.5 * i for i in range(1000)]
    assert smoothed(line)[500] == pytest.approx(line[500])
    assert smoothed([3.0] * 50) == pytest.approx([3.0] * 50)
    assert smoothed([1.0]) == [1.0]


def test_long_series_are_thinned_but_keep_their_spikes():
    values = [math.sin(i / 1e4) for i in range(60_000)]
    values[31_234] = 99.0
    kept = thin(values)
    assert len(kept) <= MAX_POINTS + 2 and {0, 31_234, 59_999} <= set(kept) and kept == sorted(kept)
    figure = Chart("t", [Line("n", list(enumerate(values)), smooth=True)]).figure()
    assert len(json.dumps(figure)) < 80_000


def test_a_store_that_does_not_answer_is_told_in_a_line(run_dir, capsys, monkeypatch):
    """Nobody listens there; what it waits is the storage's own matter."""
    monkeypatch.setattr(patience.Patience, "again", lambda patience, error: raised(patience, error))
    for name, value in (("ENDPOINT_URL", "http://127.0.0.1:9"), ("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b")):
        monkeypatch.setenv(f"AWS_{name}", value)
    assert main([str(run_dir), "--manifest", "s3://bucket/set"]) == 2
    assert "s3://bucket/set" in capsys.readouterr().err


def raised(patience_: patience.Patience, error: Exception) -> bool:
    raise patience.GaveUp(error, 1, 0.0)


def test_command_line(run_dir, capsys):
    assert main([str(run_dir)]) == 0
    assert capsys.readouterr().out.strip() == str(run_dir / "report.html")
    assert main([str(run_dir / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    with pytest.raises(UserError, match="existing run folder"):
        write_pretrain_report(run_dir / "nowhere")
