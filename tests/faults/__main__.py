"""`python -m tests.faults [TRIAL ...]`: all that `tests/faults` tests in short, at length, and through Ray; `make chaos`.

Each trial's figures, or how it failed, are added to the JSON file OUT as it ends.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.rgw import ObjectStore, missing
from infra.local_head import local_head
from jala_ray.data.synthetic import generate
from jala_ray.training.log import environment
from tests.end_to_end.conftest import train_quickly
from tests.faults.chain import WORLD
from tests.faults.trials import Trials

ROOT = Path(__file__).resolve().parents[2]
NAMES = (
    "kills_on_disk",
    "kills_on_store",
    "kills_behind",
    "tenth",
    "outages",
    "gone",
    "tenth_ray",
    "outages_ray",
    "gone_ray",
    "head_lost",
)
WITHIN_S = 300.0
"""In which a run whose store is gone ends."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("trials", nargs="*", metavar="TRIAL", help=f"of {', '.join(NAMES)}; by default all of them")
    parser.add_argument("--seed", type=int, default=14)
    parser.add_argument("--kills", type=int, default=50, help="on disk, and as many on the store")
    parser.add_argument("--outage-s", type=float, default=60.0)
    parser.add_argument("--patience-s", type=float, default=180.0)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/chaos.json")
    asked = parser.parse_args()
    if unknown := set(asked.trials) - set(NAMES):
        parser.error(f"no trial {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if absent := missing():
        sys.exit(f"no {', '.join(absent)}: install Debian's packages radosgw, ceph-mon, ceph-osd and ceph-common")
    wanted, failed = asked.trials or NAMES, 0
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder, ObjectStore(Path(folder) / "ceph") as gateway:
        os.environ.update({k: v for k, v in gateway.environment.items() if k != "AWS_ENDPOINT_URL"})
        world = Path(folder) / "world"
        generate(world, WORLD)
        tokenizer = train_quickly((str(world / "manifest.parquet"),), Path(folder) / "tokenizer", steps=20)
        alone = Trials(gateway, world, Path(folder) / "alone")
        small: dict[str, Callable[[], dict[str, Any]]] = {
            "kills_on_disk": lambda: alone.kills(asked.kills, asked.seed, tokenizer, on_store=False),
            "kills_on_store": lambda: alone.kills(asked.kills, asked.seed, tokenizer, on_store=True),
            "kills_behind": lambda: alone.kills_behind(12, asked.seed, tokenizer),
            "tenth": lambda: alone.tenth(asked.seed),
            "outages": lambda: alone.outages(asked.outage_s),
            "gone": lambda: alone.gone(asked.patience_s, WITHIN_S),
        }
        for name in (name for name in small if name in wanted):
            failed += not record(name, small[name], asked)
        if set(wanted) - set(small):
            with local_head(2) as head:
                ray = Trials(gateway, world, Path(folder) / "ray", head)
                _ = ray.unbroken
                large: dict[str, Callable[[], dict[str, Any]]] = {
                    "tenth_ray": lambda: ray.tenth(asked.seed),
                    "outages_ray": lambda: ray.outages(asked.outage_s),
                    "gone_ray": lambda: ray.gone(asked.patience_s, WITHIN_S),
                }
                for name in (name for name in large if name in wanted):
                    failed += not record(name, large[name], asked)
            if "head_lost" in wanted:  # has heads of its own
                failed += not record("head_lost", ray.head_lost, asked)
    return 1 if failed else 0


def record(name: str, trial: Callable[[], dict[str, Any]], asked: argparse.Namespace) -> bool:
    """Run a trial and add what came of it to the file; whether all was as promised."""
    began = time.monotonic()
    try:
        result = {"kept": True} | trial()
    except Exception as error:
        result = {"kept": False, "error": f"{type(error).__name__}: {error}"[:4000]}
    facts = environment() | {"command": f"python -m tests.faults {' '.join(sys.argv[1:])}".rstrip()}
    row = {"trial": name, "seed": asked.seed, "seconds": round(time.monotonic() - began), **result, **facts}
    rows = json.loads(asked.out.read_text()) if asked.out.exists() else []
    asked.out.write_text(json.dumps([*rows, row], indent=1) + "\n")
    shown = {key: value for key, value in result.items() if key != "moments"}
    print(f"{name}: {row['seconds']} s, {json.dumps(shown)}", flush=True)
    return bool(result["kept"])


if __name__ == "__main__":
    sys.exit(main())
