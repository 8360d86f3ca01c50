import json

import pytest

from jala_ray.reports.run.folder import lineage, read_metrics, read_run
from jala_ray.types import UserError


def rows(*steps, **more):
    return [{"step": step, "loss": float(step), **more} for step in steps]


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")


def test_a_resumed_run_keeps_the_last_occurrence_of_each_step():
    first = [{"step": s, "loss": 1.0, "attempt": 0} for s in (1, 2, 3, 4)]
    second = [{"step": s, "loss": 2.0, "attempt": 1} for s in (3, 4, 5)]
    survivors, attempts = lineage(first + second)
    assert [(row["step"], row["loss"]) for row in survivors] == [
        (1, 1.0),
        (2, 1.0),
        (3, 2.0),
        (4, 2.0),
        (5, 2.0),
    ]
    assert [(a.name, a.first_step, a.last_step, a.discarded) for a in attempts] == [
        ("0", 1, 4, 2),
        ("1", 3, 5, 0),
    ]


def test_steps_rolled_back_and_not_reached_again_are_gone():
    survivors, attempts = lineage(rows(1, 2, 3, 4, 5) + rows(3))
    assert [row["step"] for row in survivors] == [1, 2, 3]
    assert attempts[0].discarded == 3


def test_a_third_attempt_may_roll_back_into_the_first():
    survivors, attempts = lineage(rows(1, 2, 3, attempt=0) + rows(3, 4, attempt=1) + rows(2, 3, attempt=2))
    assert [(row["step"], row["attempt"]) for row in survivors] == [(1, 0), (2, 2), (3, 2)]
    assert [a.discarded for a in attempts] == [2, 2, 0]


def test_rows_of_one_step_and_attempt_merge_and_null_hides_nothing():
    train = {"step": 10, "loss": 2.0, "loss_text": None, "attempt": 0}
    late = {"step": 10, "loss": None, "val/lab/loss_mcp": 3.0, "attempt": 0}
    after = {"step": 11, "loss": 1.0, "attempt": 0}
    survivors, attempts = lineage([train, after, late])
    assert survivors[0] == {"step": 10, "loss": 2.0, "loss_text": None, "val/lab/loss_mcp": 3.0, "attempt": 0}
    assert len(survivors) == 2 and len(attempts) == 1  # the order within one attempt is free


def test_a_repeated_step_forgets_keys_of_the_lost_attempt():
    lost = {"step": 2, "loss": 1.0, "monitor/rho": 0.9, "attempt": "a"}
    survivors, _ = lineage([lost, {"step": 2, "loss": 5.0, "attempt": "b"}])
    assert "monitor/rho" not in survivors[0]


def test_wall_clock_counts_every_attempt_including_lost_steps(tmp_path):
    first = [{"step": s, "time_s": 100.0 + s, "attempt": 0} for s in (1, 2, 3)]
    second = [{"step": s, "time_s": 900.0 + s, "attempt": 1} for s in (2, 4)]
    assert [a.seconds for a in lineage(first + second)[1]] == [2.0, 2.0]


@pytest.mark.parametrize("bad", [{"loss": 1.0}, {"step": "3"}, {"step": True}, {"step": 1.5}])
def test_a_row_without_a_step_is_an_error_that_names_it(tmp_path, bad):
    write(tmp_path / "metrics.jsonl", {"step": 1}, bad)
    with pytest.raises(UserError, match=r"step.*Row 2 of"):
        read_metrics(tmp_path)


def test_half_a_line_is_left_out_and_told(tmp_path):
    write(tmp_path / "metrics.jsonl", {"step": 1, "loss": 1.0}, '{"step": 2, "lo', {"step": 3, "loss": 0.5}, "7")
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 3]
    assert read_run(tmp_path).torn == ["metrics.jsonl:2", "metrics.jsonl:4"]


def test_rows_moved_to_the_cut_file_count_as_lost_and_stay_out(tmp_path):
    write(tmp_path / "metrics.jsonl", *rows(10, 20, attempt=1), *rows(30, 40, attempt=3))
    cut = [*rows(30, 40, attempt=1), *rows(30, attempt=2)]
    write(tmp_path / "metrics.cut.jsonl", *cut, '{"step": 5')
    run = read_run(tmp_path)
    assert [(row["step"], row["attempt"]) for row in run.metrics] == [(10, 1), (20, 1), (30, 3), (40, 3)]
    found = {(a.name, a.first_step, a.last_step, a.discarded) for a in run.attempts}
    assert found == {("1", 10, 40, 2), ("2", 30, 30, 1), ("3", 30, 40, 0)}


def test_missing_folders_and_damaged_json_are_errors(tmp_path):
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        read_metrics(tmp_path)
    with pytest.raises(UserError, match="existing run folder"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json"):
        read_run(tmp_path)
