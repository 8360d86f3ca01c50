"""Computed pages: what scale asks for, and what spot costs, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import spot
from benchmarks.scale import HEADS, SAMPLES, Assumed, parser, rows, scale
from jala_ray.config import RunConfig
from jala_ray.presets import PRESETS
from jala_ray.training.estimate import RunEstimate


def preset() -> RunConfig:
    found = PRESETS["jala"]
    assert isinstance(found, RunConfig)
    return found


def made(checkpoint: float, flops: float) -> RunEstimate:
    nothing: dict[str, object] = dict.fromkeys(
        ("parameters", "learned", "footprint", "largest", "tokens_sequence", "steps")
    )
    return RunEstimate(**nothing, flops_step=flops, checkpoint=int(checkpoint))  # type: ignore[arg-type]


def test_figures_are_those_worked_out_by_hand() -> None:
    config, assumed = preset(), Assumed(tflops=1.0, store_mb_s=100, node_mb_s=400, hash_mb_s=50, stage_mb_s=1000)
    one = scale(config, made(1e9, 128e12), 64, 128, assumed)  # 1 GB; a TFLOP a sample
    assert one.step_s == pytest.approx(2.0) and one.interval_s == pytest.approx(2000)
    assert one.one_writer == pytest.approx(40 / 2040), "20 s up and down, 20 s hashed"
    assert one.staged == pytest.approx((1000 / 64 / 1000) / (1000 / 64 / 1000 + 2000))
    assert one.written_s == pytest.approx(2000 / 3200 + 1000 / 3200)
    assert (one.resume_each, one.resume_node, one.resume_s) == (64e9, 8e9, 2.5)
    assert one.blocks == SAMPLES / 128 * 64 / config.data.steps_per_block
    assert one.requests_s == pytest.approx(128) and one.blocks_s == pytest.approx(8)
    assert one.idle == 0 and list(one.breaks(assumed)) == []


def test_what_breaks_first_is_the_worst() -> None:
    assumed = Assumed()
    one = scale(preset(), made(25e9, 128e12), 512, 128, assumed)
    worst = [what for what, _ in one.breaks(assumed)]
    assert one.idle == 384 and "ranks without a sample" in worst
    assert [times for _, times in one.breaks(assumed)] == sorted((t for _, t in one.breaks(assumed)), reverse=True)
    better = replace(assumed, coordinator=1e9, prefix_gets=1e9)
    assert {"one coordinator", "requests below one prefix"} & set(worst)
    assert not {"one coordinator", "requests below one prefix"} & {what for what, _ in one.breaks(better)}


def test_the_table_has_a_line_for_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a real preset it is the guide's, which tests/test_tables.py computes anew."""
    monkeypatch.setattr("benchmarks.scale.sizes", lambda config: made(25e9, 128e12))
    lines = rows(preset(), Assumed(**{k: v for k, v in vars(parser().parse_args([])).items() if k != "preset"}))
    assert [line[0] for line in lines] == ["8", "64", "64", "512", "512"]
    assert [line[1] for line in lines] == ["128", "128", "1024", "128", "8192"]
    assert all(len(line) == len(HEADS) for line in lines)


def test_spot_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    good = spot.Interruptions(nodes=8, per_node_hour=0.05, lost_s=300, start_s=600).goodput
    assert good == pytest.approx(1 / 1.1)
    assert spot.cost(100, 64, 2.0, good) == pytest.approx(100 * 64 * 2 * 1.1)
    equal = spot.rate_where_equal(3.0, 1.0, 8, 300, 600)
    even = spot.Interruptions(8, equal, 300, 600).goodput
    assert spot.cost(1, 1, 1.0, even) == pytest.approx(spot.cost(1, 1, 3.0, 1.0))
    words = "--hours 100 --gpus 64 --nodes 8 --price 3 --spot-price 1 --per-node-hour 0.05 --lost-s 300 --start-s 600"
    spot.main(words.split())
    out = capsys.readouterr().out
    assert "on demand 19,200 in 100 h" in out and "spot      7,040 in 110 h" in out and "goodput 91%: 37% of it" in out
    spot.main(words.replace("--spot-price 1", "--spot-price 4").split())
    assert "spot is dearer" in capsys.readouterr().out
