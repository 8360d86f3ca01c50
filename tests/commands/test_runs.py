"""`jala runs`, `jala report` and `jala presets`, over folders in every state."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import boto3
import pytest

from jala_ray import storage
from jala_ray.commands import shell
from jala_ray.parsing import override, to_dict
from jala_ray.presets import PRESETS, TINY, TINY_TOKENIZER, TOKENIZER_PRESETS, VARIANTS
from jala_ray.storage import StorageOptions
from jala_ray.training import lease
from jala_ray.training.listing import list_runs


def run_folder(folder: Path, config: object, steps: int, torn: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    rows = [json.dumps({"step": step, "loss": 10.0 / step}) + "\n" for step in range(1, steps + 1)]
    if steps:
        (folder / "metrics.jsonl").write_text("".join(rows) + torn)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    config = override(TINY, {"train.steps": 10})
    run_folder(tmp_path / "done", config, 10)
    run_folder(tmp_path / "stopped", config, 4, '{"step": 5, "lo')
    run_folder(tmp_path / "group/new", config, 0)
    run_folder(tmp_path / "words", replace(TINY_TOKENIZER, name="words"), 400)
    epochs = run_folder(tmp_path / "epochs", override(TINY, {"train.steps": None, "train.epochs": 2}), 8)
    (epochs / "plan.json").write_text(json.dumps({"rows": 50}))  # 4 steps of 16 and what is left
    inner = tmp_path / "done/checkpoints/step-00000010"
    inner.mkdir(parents=True)
    (inner / "config.json").write_text("{}")  # a checkpoint is no run
    return tmp_path


def test_states(root: Path) -> None:
    states = {run.name: run for run in list_runs(str(root))}
    assert list(states) == ["done", "epochs", "group/new", "stopped", "words"]
    assert [states[name].state for name in states] == ["finished", "finished", "not begun", "stopped", "finished"]
    assert (states["stopped"].step, states["stopped"].steps, states["stopped"].loss) == (4, 10, 2.5)
    assert states["epochs"].steps == 8 and states["words"].kind == "tokenizer"
    assert states["done"].age_s is None, "nobody held it"


def test_who_holds_a_folder(root: Path) -> None:
    folder, options = str(root / "stopped"), StorageOptions()
    with lease.acquire(folder, options):
        (running,) = [run for run in list_runs(str(root)) if run.name == "stopped"]
        assert running.state == "running" and "process" in running.holder
        assert running.age_s is not None and running.age_s < 60
    assert [run.state for run in list_runs(str(root)) if run.name == "stopped"] == ["stopped"]
    beat = lease.last_sign(folder, options)
    assert beat is not None
    place = storage.join(
        folder, lease.FOLDER, next(n for n in storage.list_dir(f"{folder}/leases") if n.endswith(lease.BEAT))
    )
    silent = json.loads(Path(place).read_text()) | {"released": False, "time": time.time() - 3600}
    silent["process"] |= {"machine": "another"}
    Path(place).write_text(json.dumps(silent))
    (lost,) = [run for run in list_runs(str(root)) if run.name == "stopped"]
    assert lost.state == "stopped" and 3500 < (lost.age_s or 0) < 3700


def test_the_table(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.main(["runs", str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:5] == ["run", "kind", "state", "step", "loss"]
    assert next(line for line in lines if line.startswith("stopped")).split() == [
        "stopped",
        "model",
        "stopped",
        "4/10",
        "2.5",
    ]
    assert shell.main(["runs", str(root / "nothing")]) == 0
    assert "no run" in capsys.readouterr().out


def test_runs_on_a_bucket(s3_endpoint: str, tmp_path: Path, root: Path) -> None:
    boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1").create_bucket(Bucket="bucket")
    options = StorageOptions(endpoint_url=s3_endpoint, region="us-east-1")
    for file in (root / "stopped").iterdir():
        storage.write_bytes(f"s3://bucket/listed/stopped/{file.name}", file.read_bytes(), options)
    (found,) = list_runs("s3://bucket/listed", options)
    assert (found.name, found.state, found.step) == ("stopped", "stopped", 4)


def test_a_report_of_what_is_no_run_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.main(["report", str(root / "group")]) == 2
    assert "a run folder, with config.json" in capsys.readouterr().err
    assert shell.main(["report", str(root / "words")]) == 2
    assert "Pass --manifest" in capsys.readouterr().err


def test_a_report_is_written_into_the_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.main(["report", str(root / "stopped")]) == 0
    assert capsys.readouterr().out.strip() == str(root / "stopped/report.html")
    assert (root / "stopped/report.html").stat().st_size > 10_000


def test_presets_are_all_there_with_what_they_change(capsys: pytest.CaptureFixture[str]) -> None:
    assert shell.main(["presets"]) == 0
    said = capsys.readouterr().out
    for name in PRESETS:
        assert f"  {name}: " in said or f"(tiny twin: {name})" in said
    for name, variant in VARIANTS.items():
        assert f"  {name}: {variant.__doc__}" in said
    assert all(f"  {name}: " in said for name in TOKENIZER_PRESETS)
    assert "objective.align.weight: 0.5 -> 0.0" in said and "128 tokens per chunk, 8192 ids." in said
    assert shell.main(["presets", "--no-settings"]) == 0
    assert "->" not in capsys.readouterr().out
