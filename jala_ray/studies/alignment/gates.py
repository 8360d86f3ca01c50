"""What the world must show before any run of JALA counts, and the freeze that follows (`gates.json`, `frozen.json`).

A world that fails a gate is trivial or impossible: it would answer nothing. It is changed then, never after the freeze.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jala_ray.config import RunConfig, TokenizerRunConfig
from jala_ray.data.manifest.table import Manifest
from jala_ray.data.synthetic import WorldConfig
from jala_ray.evaluation.predict import HOLD_FIRST, MEAN_MOTION, rows_to_evaluate
from jala_ray.models.frame_encoder import FrameEncoder
from jala_ray.parsing import to_dict
from jala_ray.storage.claims import differences
from jala_ray.studies.alignment.evaluate import MODEL
from jala_ray.studies.alignment.keeping import same_in_both
from jala_ray.studies.alignment.probing import probe, read_pairs
from jala_ray.studies.alignment.results import StudyResults, load
from jala_ray.studies.alignment.runs import inputs, work
from jala_ray.studies.alignment.size import EncoderTraining
from jala_ray.studies.alignment.stages import StudyFolder, plain, result_of, stage, todays, write_json
from jala_ray.studies.alignment.teaching import Classroom, inverse_dynamics, perceivers, pseudo_labels
from jala_ray.studies.alignment.variants import described, jobs, named, variants
from jala_ray.studies.alignment.world import PRIMARY_PART
from jala_ray.training.device import best_device
from jala_ray.types import DOMAINS, ConfigError, UserError

PAIR_AT_LEAST, FIRST_AT_MOST, GAIN_AT_LEAST = 0.5, 0.3, 0.3
TAUGHT_AT_LEAST, CLOSED_AT_LEAST = 0.5, 0.2
CEILING, REFERENCE = "all_labelled", "no_align"
SHOWN_PART = "seen"
ENSEMBLE = 4
PRIMARY = {
    "metric": "mpjpe",
    "unit": "cm",
    "domain": "wild",
    "part": PRIMARY_PART,
    "ensemble": ENSEMBLE,
    "differences": [f"grounded - {REFERENCE}, paired by seed", "grounded - grounded_labelled_only, paired by seed"],
    "interval": "95 %, bootstrap nested over seeds and clips",
    "why this part": "targets that no label shows, under names that no label has, can be learned from unlabelled Wild video alone",
}
HINT = f"{HOLD_FIRST} is told the true first pose, which a model must see for itself; {MEAN_MOTION} is the mean of the training labels."


class GateFailed(UserError):
    """The study stops before its first run of JALA."""


@dataclass(frozen=True)
class Gate:
    name: str
    value: float | None
    rule: str
    passed: bool


def feature_gates(probes: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> list[Gate]:
    """Of {domain: {pair | v0: {r2}}}: the frames must tell the wrist's motion, and the first of them alone must not."""
    rules = (("pair", f">= {PAIR_AT_LEAST}"), ("v0", f"<= {FIRST_AT_MOST}"))
    gates = []
    for domain, found in probes.items():
        for subject, rule in rules:
            r2 = found[subject]["r2"]
            good = r2 is not None and (r2 >= PAIR_AT_LEAST if subject == "pair" else r2 <= FIRST_AT_MOST)
            gates.append(Gate(f"R2 of wrist motion from {subject}, {domain}", r2, rule, good))
    return gates


def teaching_gates(found: Mapping[str, Any]) -> list[Gate]:
    """Of what `_taught` finds: G1 to G3, what the pair can teach with the labels that runs have."""
    wrist, part = found["inverse_dynamics"]["wild"]["wrist"], found["pseudo_labels"][PRIMARY_PART]
    closed, trained = part["gap closed"], found["perceivers"]
    mean = trained["mean motion"]
    best = min(("frames", "change"), key=lambda reads: trained[reads])
    return [
        Gate(
            "G1: R2 of wrist motion that a teacher reads with the run's own labels, Wild",
            wrist,
            f">= {TAUGHT_AT_LEAST}",
            wrist >= TAUGHT_AT_LEAST,
        ),
        Gate(
            f"G2: of a kernel policy's gap to all labels, what pseudo-labels of pairs close, {PRIMARY_PART}",
            closed,
            f">= {CLOSED_AT_LEAST}",
            closed >= CLOSED_AT_LEAST,
        ),
        Gate(
            f"G3: wrist error of a perceiver trained directly, Wild, cm (reads {best})",
            trained[best],
            f"< {mean:.2f}, mean motion",
            trained[best] < mean,
        ),
    ]


def _taught(study: StudyFolder) -> dict[str, Any]:
    def make() -> dict[str, Any]:
        room = Classroom.of(study)
        found = {"inverse_dynamics": inverse_dynamics(room), "pseudo_labels": pseudo_labels(room)}
        return found | {"perceivers": perceivers(room), "teacher": room.report}

    return stage(study.out / "teaching.json", {"inputs": inputs(study)}, make)


def run_gates(found: StudyResults) -> list[Gate]:
    """G4, from runs of the ceiling and of the reference, in the primary metric: means over seeds and clips.

    What is trivial must be worse than both where labels show the target. Where none does the reference can't know better than the mean
    motion, so there it must be worse than the ceiling alone.
    """
    seeds = found.seeds(CEILING, REFERENCE)

    def mean(variant: str, row: str, part: str) -> float:
        return float(found.matrix(variant, part, "mpjpe", ENSEMBLE, row, seeds).mean())

    ceiling, reference = mean(CEILING, MODEL, PRIMARY_PART), mean(REFERENCE, MODEL, PRIMARY_PART)
    gain = 1 - ceiling / reference
    rule = f">= {GAIN_AT_LEAST:g} of {REFERENCE}'s {reference:.2f} cm"
    gates = [Gate(f"G4: what {CEILING} gains over {REFERENCE}, {PRIMARY_PART}", gain, rule, gain >= GAIN_AT_LEAST)]
    shown = max(mean(variant, MODEL, SHOWN_PART) for variant in (CEILING, REFERENCE))
    for part, least in ((PRIMARY_PART, ceiling), (SHOWN_PART, shown)):
        for row in (HOLD_FIRST, MEAN_MOTION):
            trivial = mean(REFERENCE, row, part)
            gates.append(Gate(f"G4: MPJPE of {row}, {part}, cm", trivial, f"> {least:.2f}", trivial > least))
    return gates


def pass_gates(study: StudyFolder, at_once: int, ignore: bool) -> None:
    """Try all gates and freeze, or see that nothing has changed since. Raises `GateFailed`, unless they are to be ignored."""
    _same_freeze(study)
    if (study.out / "frozen.json").exists():
        check_frozen(study)
        return
    probes = _probes(study)
    gates = feature_gates(probes)
    _decide(study, gates, probes, ignore)
    taught = _taught(study)
    gates += teaching_gates(taught)
    probes |= {"teaching": taught}
    _decide(study, gates, probes, ignore)
    work(study, jobs(named(variants(study.base()), [CEILING, REFERENCE]), study.size.gate_seeds), at_once)
    gates += run_gates(load(study))
    _decide(study, gates, probes, ignore)
    freeze(study, all(gate.passed for gate in gates))


def _probes(study: StudyFolder) -> dict[str, Any]:
    """Of frozen features on training clips of the twin, by domain."""

    def make() -> dict[str, Any]:
        encoder, manifest = FrameEncoder.build(study.encoder_config).to(best_device()), Manifest(study.twin)
        rows = rows_to_evaluate(manifest, "train", study.size.gate_clips)
        domain = manifest.index["domain"].to_pylist()
        parts = {name: [row for row in rows if domain[row] == name] for name in DOMAINS}
        return {name: probe(encoder, read_pairs(manifest, part, encoder.image_size)) for name, part in parts.items()}

    settings = {"inputs": inputs(study), "clips": study.size.gate_clips}
    found = stage(study.out / "probes.json", settings, make)
    return {domain: found[domain] for domain in DOMAINS}


def _decide(study: StudyFolder, gates: list[Gate], probes: Mapping[str, Any], ignore: bool) -> None:
    """Write `gates.json`; stop where one has failed."""
    failed = [gate for gate in gates if not gate.passed]
    content = {
        "passed": not failed,
        "ignored": ignore,
        "gates": [asdict(g) for g in gates],
        "probes": probes,
        "note": HINT,
    }
    write_json(study.out / "gates.json", plain(content))
    for gate in gates:
        print(f"gate {'passed' if gate.passed else 'FAILED'}: {gate.name}: {gate.value} ({gate.rule})", flush=True)
    if failed and not ignore:
        remedy = "The world is trivial or impossible at this size: change it under another --out, or go on with --ignore-gates."
        raise GateFailed(failed[0].name, failed[0].value, failed[0].rule, remedy)


# --- the freeze ------------------------------------------------------------------------------------------------------


def facts(study: StudyFolder) -> dict[str, Any]:
    """What the first tier's numbers follow from, the same on every machine; not the variants of later tiers, which may be added to."""
    known = variants(study.base())
    return plain(
        {
            "size": to_dict(study.size) | {"seeds": study.size.seeds[0]},
            "inputs": inputs(study),
            "tier 1": {variant.name: described(study, variant) for variant in known if variant.tier == 1},
            "primary": PRIMARY,
        }
    )


def digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def freeze(study: StudyFolder, passed: bool) -> None:
    now = facts(study)
    content = {"hash": digest(now), "gates_passed": passed, "primary": PRIMARY, "facts": now, "made": made(study)}
    write_json(study.out / "frozen.json", content)
    _same_freeze(study)
    print(f"frozen: {digest(now)}", flush=True)


def made(study: StudyFolder) -> dict[str, Any]:
    """Digests of what a machine has made, which another one need not get bit for bit."""
    world, caches = (result_of(study.out / f"{name}.json") or {} for name in ("world", "caches"))
    return {name: world.get(name) for name in ("manifest", "twin", "final")} | {
        f"cache of {name}": caches.get(name, {}).get("index") for name in ("study", "all_labelled")
    }


def _same_freeze(study: StudyFolder) -> None:
    """Have the freeze and its gates here and where scores are kept, where one of them is frozen."""
    here, kept = (folder is not None and (folder / "frozen.json").exists() for folder in (study.out, study.kept))
    if kept and not here:
        (study.out / "gates.json").unlink(missing_ok=True)  # of gates that were not decided here
    for name in ("frozen.json", "gates.json") if here or kept else ():
        same_in_both(study, name)


def check_frozen(study: StudyFolder) -> None:
    """Raises `ConfigError` where anything that the freeze names has changed since."""
    stored, now = json.loads((study.out / "frozen.json").read_text()), facts(study)
    if digest(stored["facts"]) != stored["hash"]:
        raise ConfigError(
            "frozen.json", digest(stored["facts"]), f"its own hash {stored['hash']}", "It was edited by hand."
        )
    size = stored["facts"]["size"]
    kinds = {"world": WorldConfig, "tokenizer": TokenizerRunConfig, "encoder": EncoderTraining, "run": RunConfig}
    grown = size | {name: todays(size[name], kind) for name, kind in kinds.items()}
    changed = differences(stored["facts"] | {"size": grown}, now)
    if changed:
        key, (was, found) = next(iter(changed.items()))
        remedy = "The runs that are there would no longer compare: begin another study under another --out."
        raise ConfigError(f"frozen {key}", found, f"{was!r}, as it was frozen", remedy)
    was = stored.get("made", {})
    if others := [name for name, value in made(study).items() if value != was.get(name)]:
        told = "Its clips are compared when they are scored."
        print(f"made again here, and not bit for bit the same: {', '.join(others)}. {told}", flush=True)
