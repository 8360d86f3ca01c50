"""What a run writes down is JSON whatever the numbers are, and needs no git."""

from __future__ import annotations

import contextlib
import json
import math
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.json
import pytest

from jala_ray import storage
from jala_ray.config import RunConfig
from jala_ray.parsing import from_dict, override
from jala_ray.reports.run.folder import read_run
from jala_ray.reports.run.page import badges
from jala_ray.rows import dump_row, load_row
from jala_ray.training import provenance
from jala_ray.training.log import RunLog, collapse_warnings, environment
from jala_ray.types import StorageError
from tests.training.run import run_config


def strict(line: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(line, parse_constant=refuse)


def test_rows_come_back_as_they_were() -> None:
    row = {"step": 3, "loss": math.inf, "lr": -math.inf, "grad_norm": math.nan, "loss_text": None, "rows_digest": "nan"}
    line = dump_row(row)
    assert strict(line)["loss"] is None and strict(line)["not_finite"]["grad_norm"] == "nan"
    back = load_row(line)
    assert math.isnan(back.pop("grad_norm")) and back == {k: v for k, v in row.items() if k != "grad_norm"}
    assert load_row('{"step": 1, "loss": Infinity}') == {"step": 1, "loss": math.inf}, "as older logs have it"


def test_a_diverged_run_leaves_json_that_the_report_reads(tmp_path: Path) -> None:
    written = RunLog(run_config(tmp_path), str(tmp_path / "a"), 0, 4, None)
    written.write({"step": 1, "loss": 1.0, "grad_norm": 2.0}, [])
    written.write({"step": 2, "loss": math.nan, "grad_norm": math.inf}, [{"step": 1, "value": math.nan}])
    written.close()
    for name in ("metrics.jsonl", "errors.jsonl"):
        for line in (tmp_path / "a" / name).read_text().splitlines():
            strict(line)
    assert pyarrow.json.read_json(tmp_path / "a/metrics.jsonl").num_rows == 2
    assert "diverged at step 2" in "".join(map(str, badges(read_run(tmp_path / "a"), [])))
    RunLog(run_config(tmp_path), str(tmp_path / "a"), 1, 4, None).close()  # rolls the last row back
    [cut] = (tmp_path / "a/metrics.cut.jsonl").read_text().splitlines()
    assert strict(cut)["loss"] is None


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Files may be opened, and not a byte be written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_settings_that_were_there(tmp_path: Path) -> None:
    config, names = run_config(tmp_path), ("config.json", "environment.json")

    def attempt(keep: int) -> list[str]:
        RunLog(override(config, {"train.keep": keep}), str(tmp_path / "run"), 0, 4, None).close()
        return [(tmp_path / "run" / name).read_text() for name in names]

    before = attempt(3)
    with pytest.raises(StorageError, match=r"config\.json"), full_disk():
        attempt(7)
    assert [(tmp_path / "run" / name).read_text() for name in names] == before
    settings, facts = attempt(7)
    assert from_dict(RunConfig, strict(settings)).train.keep == 7 and strict(facts)["attempt"] == 1


def test_a_log_that_cannot_be_brought_away_leaves_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "exists", lambda *_: False)
    written = RunLog(run_config(tmp_path), "s3://runs/a", 0, 4, None)

    def fails(self: RunLog) -> None:
        raise StorageError("write", "metrics.jsonl", "to succeed")

    monkeypatch.setattr(RunLog, "sync", fails)
    with pytest.raises(StorageError, match=r"metrics\.jsonl"):
        written.close()
    assert not written.folder.parent.exists()


GITS = {
    "none": None,
    "not executable": "x",
    "refuses": "#!/bin/sh\necho 'fatal: detected dubious ownership' >&2; exit 128",
    "odd bytes": "#!/bin/sh\nprintf '\\377\\n'",
    "hangs": "#!/bin/sh\nexec sleep 60",
    "says no commit": "#!/bin/sh\necho HEAD",
}


@pytest.mark.parametrize("git", GITS.values(), ids=GITS)
def test_a_run_needs_no_git(git: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if git is not None:
        (tmp_path / "git").write_text(git)
        (tmp_path / "git").chmod(0o644 if git == "x" else 0o755)
    monkeypatch.setenv(
        "PATH", str(tmp_path) if git is None else f"{tmp_path}:/bin:/usr/bin" if git != "x" else str(tmp_path)
    )
    monkeypatch.setattr(provenance, "GIT_S", 0.5)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    (tmp_path / ".git").mkdir()
    assert environment()["git_commit"] == "unknown"


def test_what_collapses_is_said_as_it_is_logged() -> None:
    row = {"step": 7, "monitor/rho": 0.3, "monitor/effective_rank_z": 3.0, "monitor/varying_h": 0.004}
    assert collapse_warnings(row) == [
        "WARNING step 7: monitor/effective_rank_z = 3.000 < 4: the latent actions are collapsing",
        "WARNING step 7: monitor/varying_h = 0.004 < 0.02: h is becoming a constant",
    ]
    assert collapse_warnings({"step": 8, "monitor/varying_h": 0.02}) == []
