"""Rollouts through the command: what succeeds, what fails, what a kill leaves, and what the page shows."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from jala_ray.commands import shell
from jala_ray.commands.rollout_runs import called
from jala_ray.evaluation.rollouts.forms import read_form
from jala_ray.reports.rollouts.simulated import simulated_findings
from jala_ray.rollouts.summary import difference
from jala_ray.serving.conventions import CONVENTIONS
from jala_ray.serving.engine import Engine
from jala_ray.serving.listening import Listen
from jala_ray.serving.openpi import OpenpiServer
from jala_ray.serving.running import background
from jala_ray.video.decode import VideoReader
from tests.rollouts.asked import begun, lines, run, scores, words
from tests.rollouts.policies import HORIZON, Seeing

ALL = ("--arms", "policy", "blind", "expert", "idle")
ROLLOUTS = 10
RIGHT = sum(np.random.default_rng(seed).choice([-1, 1]) == 1 for seed in range(ROLLOUTS))
"""Seeds whose target is where a policy that sees nothing goes."""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rollouts") / "whole"
    run(out, *ALL, "--tasks", "reach", "two_stages", "--variants", "seen", "unseen")
    return out


def test_a_seeing_policy_succeeds_a_blind_one_by_chance_and_an_idle_one_never(done: Path) -> None:
    found = scores(done)["success"]
    assert 0 < RIGHT < ROLLOUTS
    for task in ("reach", "two_stages"):
        counts = {arm: found[arm][task]["seen"]["count"] for arm in found}
        assert counts == {"policy": ROLLOUTS, "expert": ROLLOUTS, "blind": RIGHT, "idle": 0}
    over = scores(done)["over_blind"]["reach"]["seen"]
    assert over["mean"] == 1 - RIGHT / ROLLOUTS and over["low"] < over["mean"] < over["high"]
    assert found["policy"]["reach"]["seen"]["low"] == pytest.approx(0.7225, abs=1e-3), "Wilson, 10 of 10"


def test_every_line_has_its_seed_and_what_came_of_it(done: Path) -> None:
    found = lines(done)
    assert len(found) == 4 * 2 * 2 * ROLLOUTS
    assert {(line["number"], line["seed"]) for line in found} == {(n, n - 1) for n in range(1, ROLLOUTS + 1)}
    for line in found:
        if line["arm"] == "policy":
            assert line["asked"] == -(-line["steps"] // 8)


def test_a_rollout_may_be_shorter_than_the_simulator_s(tmp_path: Path) -> None:
    asked = ("--arms", "idle", "expert", "--rollouts", "2", "--videos", "0")
    found = run(tmp_path, *asked, "--max-steps", "5", policy=None)
    assert "Rollouts ended after 5 steps at most." in {finding.text for finding in simulated_findings(found)}
    assert [(line["steps"], line["success"]) for line in lines(tmp_path)] == [(5, False)] * 4, "the expert needs 8"
    assert shell.main(words(tmp_path, *asked, policy=None)) == 2, "another length is another folder"
    assert shell.main(words(tmp_path / "none", *asked, "--max-steps", "0", policy=None)) == 2


def test_videos_show_what_was_done_and_play(done: Path) -> None:
    found = scores(done)
    films = [film for film in found["films"] if film["task"] == "reach" and film["variant"] == "unseen"]
    assert {(film["arm"], film["success"]) for film in films} == {("policy", True), ("expert", True)}
    line = next(
        row for row in lines(done) if (row["arm"], row["task"], row["variant"]) == ("policy", "reach", "unseen")
    )
    with VideoReader(str(done / films[0]["file"])) as reader:
        assert reader.info.width == reader.info.height == 64
        pictures = reader.each(np.arange(line["steps"]) / 20, lambda picture: picture.rgb((64, 64)))
    assert np.abs(pictures[0][2, 2].astype(int) - (90, 60, 160)).max() < 12, "the unseen ground"
    first, last = (
        (seen[..., 0] > 150) & (seen[..., 1] < 100) & (seen[..., 2] < 100) for seen in (pictures[0], pictures[-1])
    )
    assert abs(np.nonzero(first)[1].mean() - 31.5) < 2 and abs(np.nonzero(last)[1].mean() - 31.5) > 15
    page = (done / "report.html").read_text()
    assert page.count("data:video/mp4;base64,") == len(found["films"])


def test_failures_are_filmed_too(tmp_path: Path) -> None:
    found = run(tmp_path, "--rollouts", "4", "--film", "blind", "--videos", "1")
    assert sorted(film["success"] for film in found["films"]) == [False, True]
    (failed,) = (film for film in found["films"] if not film["success"])
    with VideoReader(str(tmp_path / failed["file"])) as reader:
        assert reader.info.duration_s == pytest.approx(61 / 20, abs=0.01), "60 steps, and the last picture"


def test_a_film_that_ends_otherwise_is_none(tmp_path: Path) -> None:
    asked = ("--rollouts", "2", "--film", "policy")
    run(tmp_path, *asked, "--videos", "0")
    first, second = sorted((tmp_path / "actions").glob("policy_*.npy"))
    np.save(first, np.zeros_like(np.load(first)))
    second.unlink()
    found = run(tmp_path, *asked, "--videos", "2")
    assert [film["file"] for film in found["films"]] == ["", ""]
    assert ["ended otherwise" in film["problem"] for film in found["films"]] == [True, False]
    assert "There is no video" in (tmp_path / "report.html").read_text() and not list((tmp_path / "videos").iterdir())


def test_stages_are_scored_by_the_real_robot_s_scorer(done: Path) -> None:
    form = read_form(str(done / "forms/blind.json"))
    missed = [one for one in form.rollouts if one.task == "two_stages" and one.variant == "seen" and one.failure]
    assert len(missed) == ROLLOUTS - RIGHT and {one.failure for one in missed} == {"Half the way"}
    forms = [str(done / f"forms/{arm}.json") for arm in ("policy", "blind")]
    assert shell.main(["rollouts", "score", *forms, "--out", str(done / "again")]) == 0
    again = json.loads((done / "again/scores.json").read_text())["policies"]
    assert again == {name: scores(done)["scores"]["policies"][name] for name in again}
    assert "two_stages" in (done / "table.md").read_text()


def test_a_killed_run_goes_on_and_its_table_is_the_same(done: Path, tmp_path: Path) -> None:
    asked = (*ALL, "--variants", "seen", "unseen")
    process = begun(tmp_path, *asked, tasks=("reach", "two_stages"))
    deadline = time.monotonic() + 120
    while not (tmp_path / "rollouts.jsonl").is_file() or len(lines_whole(tmp_path)) < 20:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = lines_whole(tmp_path)
    assert 20 <= len(before) < 160
    with (tmp_path / "rollouts.jsonl").open("ab") as file:
        file.write(b'{"arm": "poli')  # as a kill in the midst of a write leaves it
    run(tmp_path, *asked, tasks=("reach", "two_stages"))
    assert [json.dumps(line) for line in lines(tmp_path)[: len(before)]] == before
    assert len(lines(tmp_path)) == 160
    one, other = (scores(folder) for folder in (done, tmp_path))
    assert (one["scores"], one["success"]) == (other["scores"], other["success"])


def lines_whole(out: Path) -> list[str]:
    return [
        row.decode().strip() for row in (out / "rollouts.jsonl").read_bytes().splitlines(True) if row.endswith(b"\n")
    ]


def test_a_served_policy_and_overlapped_chunks_give_the_same(tmp_path: Path) -> None:
    with background(OpenpiServer(Engine(Seeing(), CONVENTIONS["lerobot"]), Listen(0))) as port:
        found = run(tmp_path / "served", "--name", "p", "--rollouts", "6", policy=f"ws://127.0.0.1:{port}")
    assert found["success"]["policy"]["reach"]["seen"]["count"] == 6
    ahead = run(tmp_path / "ahead", "--name", "p", "--rollouts", "6", "--execute", "6", "--ahead", "4")
    assert ahead["success"]["policy"]["reach"]["seen"]["count"] == 6
    same = [
        {key: line[key] for key in ("arm", "seed", "success", "steps")}
        for out in ("served", "ahead")
        for line in sorted(lines(tmp_path / out), key=lambda line: (line["arm"], line["seed"]))
    ]
    assert same[:12] == same[12:], "a policy that sees all moves alike, delayed or not"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--tasks", "raech"), "Did you mean reach"),
        (("--arms", "policy"), "blind beside policy"),
        (("--variants", "dark"), "got 'dark'"),
        (("--execute", "3", "--ahead", "4"), "0 <= ahead <= execute"),
        (("--cameras", "x", "--simulator", "metawrold"), "Did you mean metaworld"),
        (("--size", "63"), "even number"),
        (("--out", "s3://b/x"), "a local folder"),
    ],
)
def test_mistakes_are_named(
    more: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shell.main(words(tmp_path, *more)) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("broken", "got '7 columns', expected 2"),
        ("slower", "policy's fps: got 10, expected 20"),
        ("thinned", "policy's rate_hz: got 10, expected 20"),
        ("sees_more", "['observation.images.wrist'], expected what the simulator shows: observation.images.front"),
        ("feels_more", "policy's state: got {'observation.state': 7}"),
    ],
)
def test_a_policy_of_another_robot_is_refused(
    policy: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shell.main(words(tmp_path, policy=f"tests.rollouts.policies:{policy}")) == 2
    assert said in capsys.readouterr().err


def test_a_folder_is_for_one_set_of_settings_and_may_grow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "--rollouts", "2", "--videos", "0")
    assert shell.main(words(tmp_path, "--seed", "5")) == 2
    assert "seed: got 5, expected 0, as the rollouts began" in capsys.readouterr().err
    before = lines(tmp_path)
    found = run(tmp_path, "--rollouts", "3", "--arms", "policy", "blind", "idle", "--videos", "0")
    assert lines(tmp_path)[:4] == before and len(lines(tmp_path)) == 4 + 2 + 3
    assert found["success"]["policy"]["reach"]["seen"]["of"] == 3


def test_another_policy_of_the_same_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "--rollouts", "1", "--videos", "0", "--name", "mine")
    assert shell.main(words(tmp_path, "--name", "mine", policy="tests.rollouts.policies:slower")) == 2
    said = capsys.readouterr().err
    assert "address: got 'tests.rollouts.policies:slower', expected 'tests.rollouts.policies:" in said


def test_one_job_at_a_time_is_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = begun(tmp_path, "--rollouts", "900", tasks=("reach",))
    try:
        while not (tmp_path / "rollouts.jsonl").is_file() or not lines_whole(tmp_path):
            assert process.poll() is None
            time.sleep(0.01)
        assert shell.main(words(tmp_path, "--rollouts", "900")) == 2
        assert "no other job is at work" in capsys.readouterr().err
    finally:
        process.kill()
        process.communicate()


def test_newcombe_s_interval_by_his_example() -> None:
    """56 of 70 less 48 of 80: 0.0524 to 0.3339 (Newcombe 1998, table II, method 10)."""
    from jala_ray.evaluation.rollouts.scores import share

    found = difference(share(56, 70), share(48, 80))
    assert (found["low"], found["high"]) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


def test_a_chunk_is_long_enough_for_the_tests() -> None:
    assert HORIZON >= 6 + 4


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        ("ws://127.0.0.1:8000", "127.0.0.1:8000"),
        ("runs/mine/", "mine"),
        ("s3://bucket/runs/mine/checkpoints/step-00030000", "mine step-00030000"),
        ("my_policy:load", "my_policy:load"),
    ],
)
def test_a_policy_is_called_by_the_end_of_its_address(policy: str, name: str) -> None:
    assert called(policy) == name
