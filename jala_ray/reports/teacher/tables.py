"""What the fit of a teacher says of itself (`training.teacher.fit.Report`), as tables and warnings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jala_ray.reports.kit.findings import Finding, worst_first
from jala_ray.reports.kit.html import Html, join
from jala_ray.reports.kit.widgets import DOMAIN_NAMES, about, number, table
from jala_ray.types import TEACHER_R2_WARN

Report = Mapping[str, Any]
FEW_CLIPS = 30
"""Labelled clips of a domain below which its figures are those of a few scenes."""
GUESSES = 0.9
"""Share of what all tells that v_t alone tells, from which on the teacher hardly looks at what happened."""
READS = {
    "all": "both frames and their change",
    "v_t alone": "the first frame",
    "v_t+delta alone": "the second frame",
    "the change alone": "their change",
}


def named(domain: str) -> str:
    return DOMAIN_NAMES.get(domain, domain)


def teacher_findings(report: Report) -> list[Finding]:
    """Warnings, the serious ones first."""
    return worst_first([*_weak(report), *_guesses(report), *_few(report), *_left_out(report)])


def _weak(report: Report) -> Iterator[Finding]:
    for domain, r2 in report["r2"].items():
        if r2["motion"] < TEACHER_R2_WARN:
            text = f"{named(domain)}: the teacher tells less than half of the motion."
            detail = f"Alignment with it asks for little there: label more clips of {domain}, or take features that see its hands."
            yield Finding("bad", text, detail, f"R2 {r2['motion']:.2f} on held-out labels, wanted {TEACHER_R2_WARN:g}")


def _guesses(report: Report) -> Iterator[Finding]:
    """Only where it tells something at all."""
    reads = report["reads"]
    for domain, r2 in reads.get("all", {}).items():
        alone = reads["v_t alone"].get(domain, {}).get("motion")
        if alone is not None and r2["motion"] > 0.1 and alone > GUESSES * r2["motion"]:
            text = f"{named(domain)}: the first frame alone tells nearly as much as both."
            detail = (
                "The teacher guesses from the scene what will happen, which the policy can do as well: an unlabelled clip's own pair adds "
                "little. Take features that show small changes, or label clips whose motion the scene does not give away."
            )
            yield Finding("warn", text, detail, f"R2 {alone:.2f} from v_t, {r2['motion']:.2f} from all")


def _few(report: Report) -> Iterator[Finding]:
    for domain, chunks in report["chunks"].items():
        clips = report.get("clips", {}).get(domain)
        figure = f"{chunks:,} labelled hand-chunks" + (f" of {clips:,} clips" if clips is not None else "")
        if domain not in report["r2"]:
            detail = "What the teacher is worth there is not known."
            yield Finding("warn", f"{named(domain)}: too few labels for a figure.", detail, figure)
        elif clips is not None and clips < FEW_CLIPS:
            detail = f"Its figures are those of a few scenes: wanted {FEW_CLIPS} clips or more."
            yield Finding("warn", f"{named(domain)}: few labelled clips.", detail, figure)


def _left_out(report: Report) -> Iterator[Finding]:
    if report.get("left_out"):
        detail = "Training, which meets them too, says why."
        yield Finding("warn", "Rows with labels could not be read.", detail, f"{report['left_out']:,} left out")


def worth(report: Report) -> Html:
    """R2 a domain."""
    rows = []
    for domain, chunks in report["chunks"].items():
        r2 = report["r2"].get(domain, {})
        shown = [number(r2.get(name), 2) for name in ("motion", "wrist", "finger")]
        rows.append([named(domain), *shown, number(chunks), number(report.get("clips", {}).get(domain))])
    by = report.get("held_by", "clip")
    text = (
        f"R2 on held-out labels: a fifth of the {by}s at a time is told by a fit on the rest. 1 is all of the variance, 0 no better than "
        "the mean. Motion: the directions that alignment uses. Wrist, fingers: displacement within the chunk. The penalty is chosen on "
        "the same parts, so the figures are a little kind."
    )
    head = ("Domain", "Motion", "Wrist", "Fingers", "Labelled hand-chunks", "Clips")
    return join(about(text), table(head, rows, numbers=tuple(range(1, len(head)))))


def reads(report: Report) -> Html:
    """R2 of motion from all, and from less."""
    domains = list(report["r2"])
    rows = [
        [shown, *(number(report["reads"][name].get(domain, {}).get("motion"), 2) for domain in domains)]
        for name, shown in READS.items()
        if name in report["reads"]
    ]
    text = (
        "R2 of motion when the teacher may look only at a part of the pair, fitted on the same sample with fewer landmarks. What the first "
        "frame tells is guessed from the scene; what only the change tells was seen."
    )
    head = ("It sees", *(named(domain) for domain in domains))
    return join(about(text), table(head, rows, numbers=tuple(range(1, len(head)))))


def choices(report: Report) -> Html:
    """How the regression was chosen."""
    kernel = report["kernel"]
    first, second, change = kernel["weights"]
    rows = [
        ["Weights of v_t, of v_t+delta, of the change", f"{first:g}, {second:g}, {change:g}"],
        ["Bandwidth, in median distances of two landmarks", number(kernel["bandwidth"])],
        ["What a label of one hand counts for the other", number(kernel["other_hand"])],
        ["Ridge penalty", f"{report['penalty']:.0e}"],
        ["Chunks of all domains", "weigh alike" if not report["balance"] else "weigh so that domains weigh alike"],
        ["Held out at once", f"a {report.get('held_by', 'clip')}"],
        ["Rows of the manifest with labels", number(report.get("rows"))],
        ["Fitted on", "all of them" if report.get("streamed") else "a sample, or all where there are few"],
        ["Time of the fit", number(report["seconds"], 3, " s")],
    ]
    return join(
        about("Chosen by held-out clips, one after another, on a sample."), table(("Choice", ""), rows, numbers=(1,))
    )


def section(report: Report) -> Html:
    """For the page of a run."""
    return join(worth(report), reads(report))
