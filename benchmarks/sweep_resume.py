"""A sweep that is killed beside one that is not: `python benchmarks/sweep_resume.py --manifest M --tokenizer T [--trials 12]`.

Both are the same search of lambda, alpha and the aligned layer on the tiny preset, in waves of two trials, ASHA stopping some, from a
cache. The second one's driver gets SIGKILL when half of its trials have finished, and is started again with --resume. With the world that
`make demo` leaves: --manifest runs/demo/world/manifest.parquet --tokenizer runs/demo/tokenizer.
JSON: {"trials": n, "minutes": x, "stopped": n, "rerun": n, "differing_metrics": n, "tables_equal": bool}.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.form import report
from infra.local_head import local_head
from jala_ray.sweeps.ledger import Ledger

ROOT = Path(__file__).resolve().parents[1]
TIMED = ("order", "step_s", "samples_per_s")
"""Of a report: what no two runs share."""


def words(asked: argparse.Namespace, root: Path, name: str) -> list[str]:
    data = ["--data.manifest", str(asked.manifest.absolute()), "--motion-tokenizer", str(asked.tokenizer.absolute())]
    size = ["--train.steps", str(asked.steps), "--report-every", str(asked.steps // 9), "--trials", str(asked.trials)]
    place = ["--name", name, "--storage.root", str(root), "--synchronous", "--concurrent", "2"]
    small = ["--cluster.workers", "1", "--cluster.cpus-per-worker", "0.4", "--log.tensorboard", "False"]
    return [sys.executable, str(ROOT / "tune" / "sweep.py"), "tiny", *place, *size, *data, *small]


def curves(folder: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """(trial, step) -> what was reported."""
    return {
        (record.number, row["step"]): {k: v for k, v in row.items() if k not in TIMED}
        for record in Ledger(str(folder))
        for row in record.rows
    }


def table(folder: Path) -> list[dict[str, Any]]:
    """`results.json` without clocks."""
    rows = json.loads((folder / "results.json").read_text())["trials"]
    kept = [{k: v for k, v in row.items() if k not in ("seconds", "gpu_hours")} for row in rows]
    return sorted(kept, key=lambda row: row["number"])


def attempts_of(folder: Path) -> dict[int, int]:
    """Trial -> attempts of its run, by metrics.jsonl."""
    found = {}
    for file in (folder / "runs").glob("*/metrics.jsonl"):
        attempts = [json.loads(line)["attempt"] for line in file.read_text().splitlines()]
        found[int(file.parent.name)] = max(attempts, default=0)
    return found


def killed(command: list[str], environment: dict[str, str], folder: Path, half: int) -> set[int]:
    """Run until `half` trials have finished, then SIGKILL; which had finished."""
    driver = subprocess.Popen(command, env=environment, stdout=sys.stderr)
    while driver.poll() is None:
        time.sleep(0.5)
        done = {record.number for record in Ledger(str(folder)) if record.finished}
        if len(done) >= half:
            driver.send_signal(signal.SIGKILL)
            driver.wait()
            return {record.number for record in Ledger(str(folder)) if record.finished}
    raise RuntimeError("the sweep ended before it could be killed")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--steps", type=int, default=108)
    parser.add_argument("--out", type=Path, help="keep the sweeps here")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, local_head(2) as head:
        root = (asked.out or Path(scratch)).absolute()
        environment = head.environment | {"RAY_ADDRESS": head.gcs, "TOKENIZERS_PARALLELISM": "false"}
        environment |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "OMP_NUM_THREADS": "1"}
        whole, cut = root / "whole", root / "cut"
        began = time.monotonic()
        subprocess.run(words(asked, root, "whole"), env=environment, check=True, stdout=sys.stderr)
        minutes = (time.monotonic() - began) / 60
        print(f"unbroken: {minutes:.1f} min", file=sys.stderr, flush=True)
        before = killed(words(asked, root, "cut"), environment, cut, asked.trials // 2)
        attempts = attempts_of(cut)
        print(f"killed when {sorted(before)} had finished", file=sys.stderr, flush=True)
        subprocess.run([*words(asked, root, "cut"), "--resume"], env=environment, check=True, stdout=sys.stderr)
        rerun = [n for n in before if attempts_of(cut)[n] != attempts[n]]
        one, two = curves(whole), curves(cut)
        differing = [key for key in one.keys() | two.keys() if one.get(key) != two.get(key)]
        records = list(Ledger(str(whole)))
        rows = [(r.number, *r.values.values(), r.state, r.step, f"{r.seconds:.0f}") for r in records]
        figures = {
            "trials": len(records),
            "minutes": round(minutes, 1),
            "stopped": sum(r.state == "stopped" for r in records),
            "killed_after": len(before),
            "rerun": len(rerun),
            "reports": len(one),
            "differing_metrics": len(differing),
            "tables_equal": table(whole) == table(cut),
        }
        keys = [key.rpartition(".")[2] for key in records[0].values]
        report("the unbroken sweep", ("trial", *keys, "state", "step", "seconds"), rows, figures)


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    main()
