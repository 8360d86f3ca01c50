"""The way of a row from the plan to the loss: its forms, a table of them and a picture. `python -m tests.data_path` writes both."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE, PICTURE = ROOT / "docs/data_path.md", ROOT / "docs/images/data_path.svg"
MARKED = re.compile(r"(<!-- table: forms -->\n)(.*?)(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Form:
    """One of the forms that a row takes."""

    name: str
    file: str
    """Of `jala_ray`, where it is declared."""
    says: str


@dataclass(frozen=True)
class Arrow:
    """What makes one form of another."""

    of: str
    to: str
    file: str
    by: str
    """What of the file does."""


FORMS = (
    Form("PlanRow", "data/sampling/plan.py", "its place in the epoch, and where the row lies"),
    Form("bytes", "data/manifest/rowfile.py", "the row as stored, had by one ranged read, its CRC compared"),
    Form("Clip", "types.py", "words, hands, signals, views, where its video lies"),
    Form("Sample", "data/samples/source.py", "the same with motion codes; a cache gives it at once"),
    Form("Draw", "data/samples/draw.py", "what chance decides, keyed by (seed, epoch, plan row)"),
    Form("Laid", "data/samples/layout.py", "token columns, signals, and the pictures that it asked for"),
    Form("Batch", "batch.py", "several samples in one row, for the learner"),
    Form("StepShare", "data/samples/share.py", "a rank's micro-batches of a step, which travel as bytes"),
)
ARROWS = (
    Arrow("PlanRow", "bytes", "data/samples/source.py", "StoredRows.fetch"),
    Arrow("bytes", "Clip", "data/samples/source.py", "row_to_clip"),
    Arrow("Clip", "Sample", "data/samples/source.py", "ManifestSource.samples"),
    Arrow("bytes", "Sample", "data/cache/source.py", "CacheSource.samples"),
    Arrow("Sample", "Draw", "data/samples/hand_recipe.py", "Recipe.draw"),
    Arrow("Draw", "Laid", "data/samples/hand_recipe.py", "Recipe.lay_out"),
    Arrow("Laid", "Batch", "data/samples/collate.py", "Recipe.collate"),
    Arrow("Batch", "StepShare", "data/samples/share.py", "ShareBuilder.shares"),
)


def module(file: str) -> str:
    """Of a file of `jala_ray`."""
    return f"jala_ray.{file.removesuffix('.py').replace('/', '.')}"


def table() -> str:
    lines = ["| | form | declared in | what it is | made by |\n|---|---|---|---|---|\n"]
    for number, form in enumerate(FORMS, 1):
        made = "; ".join(f"`{arrow.by}` (`{arrow.file}`)" for arrow in ARROWS if arrow.to == form.name)
        made = made or "`Plan.share` (`data/sampling/plan.py`)"
        lines.append(f"| {number} | `{form.name}` | `{form.file}` | {form.says} | {made} |\n")
    return "".join(lines)


CARD, GAP, LEFT, WIDTH = 58, 34, 300, 400
"""px: height of a form's card, room between two, where cards begin, and their width."""
STYLE = """
    :root { --ink: #1f2933; --soft: #5b6774; --line: #8a96a3; --fill: #e6f0fa; --edge: #2563a8; --back: #ffffff; }
    @media (prefers-color-scheme: dark) {
      :root { --ink: #e6edf3; --soft: #9aa7b4; --line: #7d8a97; --fill: #16283a; --edge: #7db4ec; --back: #0d1117; }
    }
    text { fill: var(--ink); font-size: 13px; }
    .head { font-weight: 600; font-size: 15px; }
    .soft { fill: var(--soft); font-size: 12px; }
    .card { fill: var(--fill); stroke: var(--edge); stroke-width: 1.3; }
    .flow { fill: none; stroke: var(--line); stroke-width: 1.6; marker-end: url(#tip); }
    .tip { fill: var(--line); }
    .back { fill: var(--back); }
"""


def picture() -> str:
    """The forms from top to bottom, with who makes each of the one before."""
    height = len(FORMS) * (CARD + GAP) + 24
    top = {form.name: 16 + i * (CARD + GAP) for i, form in enumerate(FORMS)}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 {height}" role="img" aria-labelledby="title desc"\n'
        "     font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif\">",
        '  <title id="title">From the plan to the loss</title>',
        f'  <desc id="desc">A row takes the forms {", ".join(form.name for form in FORMS)}, then the learner has it.</desc>',
        f"  <style>{STYLE}  </style>",
        '  <defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="tip" d="M0 0 10 5 0 10z"/></marker></defs>',
        f'  <rect class="back" width="860" height="{height}"/>',
    ]
    middle = LEFT + WIDTH // 2
    for form in FORMS:
        y = top[form.name]
        parts += [
            f'  <rect class="card" x="{LEFT}" y="{y}" width="{WIDTH}" height="{CARD}" rx="9"/>',
            f'  <text class="head" x="{LEFT + 14}" y="{y + 23}">{escape(form.name)}</text>',
            f'  <text class="soft" x="{LEFT + WIDTH - 14}" y="{y + 23}" text-anchor="end">{escape(form.file)}</text>',
            f'  <text class="soft" x="{LEFT + 14}" y="{y + 44}">{escape(form.says)}</text>',
        ]
    for arrow in ARROWS:
        begin, end = top[arrow.of] + CARD, top[arrow.to]
        label = f"{arrow.by}, {arrow.file}"
        if end - begin == GAP:
            parts += [
                f'  <path class="flow" d="M{middle} {begin}V{end}"/>',
                f'  <text class="soft" x="{middle + 12}" y="{begin + 22}">{escape(label)}</text>',
            ]
        else:  # past the forms between
            side, into = LEFT - 30, end + CARD // 2
            parts += [
                f'  <path class="flow" d="M{LEFT} {begin - CARD // 2}H{side}V{into}H{LEFT}"/>',
                f'  <text class="soft" x="{side - 10}" y="{(begin + end) // 2 - 2}" text-anchor="end">{escape(arrow.by)},</text>',
                f'  <text class="soft" x="{side - 10}" y="{(begin + end) // 2 + 14}" text-anchor="end">{escape(arrow.file)}</text>',
            ]
    last = top[FORMS[-1].name] + CARD
    parts.append(
        f'  <text class="soft" x="{LEFT + 14}" y="{last + 20}">then training/pretraining.py calls the learner</text>'
    )
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    PICTURE.write_text(picture())
    PAGE.write_text(MARKED.sub(lambda found: found[1] + table() + found[3], PAGE.read_text()))


if __name__ == "__main__":
    main()
