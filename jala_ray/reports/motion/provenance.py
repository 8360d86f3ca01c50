"""What every page of an evaluation ends with: the clips that failed, and how it was made."""

from __future__ import annotations

import json
import shlex

from jala_ray.evaluation.records import Evaluation
from jala_ray.reports.kit.html import Html, el, join
from jala_ray.reports.kit.widgets import about, absent, table, tree

MAX_FAILURES = 100
"""Listed."""


def failure_list(evaluation: Evaluation) -> Html:
    failed = [clip for clip in evaluation.clips if clip.failure is not None]
    if not failed:
        return absent("Every clip was evaluated.")
    rows = [[el("code", clip.clip_id), el("span", clip.source), clip.failure] for clip in failed[:MAX_FAILURES]]
    text = (
        f"{len(failed):,} of {len(evaluation.clips):,} clips could not be evaluated and are in no number of this page."
    )
    more = len(failed) - len(rows)
    return join(about(text), table(("Clip", "Source", "Why"), rows), about(f"{more:,} more.") if more else None)


def facts_list(evaluation: Evaluation) -> Html:
    # Paths and the like become text; the rest stays as it is.
    facts = json.loads(json.dumps(evaluation.facts, default=str))
    command = facts.pop("command", None)
    if isinstance(command, list):
        command = shlex.join(map(str, command))
    rest = {"manifest": evaluation.manifest, "rows": ", ".join(evaluation.rows)} | facts
    return join(el("pre", el("code", command)) if command else None, tree(rest))
