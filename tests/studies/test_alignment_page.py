"""The page of the second study says what its kept scores say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from jala_ray.studies.alignment.world import PARTS, part_of

PAGE = Path(__file__).resolve().parents[2] / "docs/results/alignment.md"
KEPT = PAGE.with_suffix("")


def test_every_seed_that_is_kept_is_on_the_page() -> None:
    clips = json.loads((KEPT / "clips.json").read_text())
    rows, name = {}, ""
    for line in PAGE.read_text().partition("## Found so far")[2].splitlines():
        if found := re.match(r"\| (`(\w+)`)? ?\| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", line):
            name = found[2] or name
            rows[name, int(found[3])] = [float(found[i]) for i in (4, 5, 6)]
    kept = {}
    for file in KEPT.glob("scores/*/seed-*.json"):
        errors = np.array(json.loads(file.read_text())["result"]["motion"]["4"]["mpjpe"], float)
        means = [np.nanmean(errors[part_of(clips["domain"], clips["source"], part)]) for part in PARTS]
        kept[file.parent.name, int(file.stem.removeprefix("seed-"))] = [round(float(mean), 2) for mean in means]
    assert kept and rows == kept


def test_the_page_names_the_freeze_and_its_gates_passed() -> None:
    frozen = json.loads((KEPT / "frozen.json").read_text())
    gates = json.loads((KEPT / "gates.json").read_text())
    assert frozen["hash"][:16] in PAGE.read_text() and frozen["gates_passed"]
    assert gates["passed"] and all(gate["passed"] for gate in gates["gates"])
