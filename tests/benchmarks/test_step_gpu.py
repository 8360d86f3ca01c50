"""The GPU's benchmark, dry: every branch runs at tiny sizes on the CPU, and a part goes on where it was cut off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import step_gpu
from benchmarks.step_remedies import REMEDIES
from benchmarks.step_samples import MIXES


def dry(folder: Path, *words: str) -> dict[str, dict[str, float]]:
    step_gpu.main(["--dry", "--results", str(folder / "step_gpu.json"), *words])
    return json.loads((folder / "step_gpu.json").read_text())["measured"]


@pytest.mark.slow
def test_every_measurement_of_all_parts_runs(tmp_path: Path) -> None:
    measured = dry(tmp_path)
    assert list(measured) == [job.name for jobs in step_gpu.parts().values() for job in jobs]
    assert not [name for name, result in measured.items() if "error" in result], measured
    for mix in MIXES:
        both = [measured[f"{mix}, 2b, bf16: {side}"] for side in ("ours", "straightforward")]
        assert all(result["samples_per_s"] > 0 for result in both)
        assert both[0]["needed_tflop"] > 0
    assert measured["short, 63m, fp32: equal"]["worst"] < 1e-3
    page = (tmp_path / "step_gpu.md").read_text()
    assert all(name in page for name in measured)
    assert not list(tmp_path.glob("*.part"))


def test_a_part_goes_on_where_it_was_cut_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [job.name for job in step_gpu.parts()[3]]
    assert len(jobs) == len(REMEDIES)
    first = dry(tmp_path, "--part", "3", "--minutes", "0.0001")
    assert list(first) == jobs[:1], "a measurement is begun, and no second one"
    file = tmp_path / "step_gpu.json"
    said = {name: {"step_s": 1.0, "samples_per_s": 2.0} for name in jobs[1:]}
    file.write_text(json.dumps({"measured": said}))
    capsys.readouterr()
    second = dry(tmp_path, "--part", "3", "--from", str(file))
    assert second.keys() == {*jobs}, "what is there is not measured again"
    assert second[jobs[1]] == said[jobs[1]]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["measured"] == second


def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(SystemExit, match="no GPU here"):
        step_gpu.main(["--part", "1"])
