"""Hook of mkdocs: pages outside docs/ belong to the site, and links between pages lead where they lie there."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "infra/README.md": "infra.md",
}
"""Path in the repository -> path in the site."""
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]*)(#[^)\s]*)?\)|(!)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File  # pyright: ignore[reportMissingImports] (the site has its own environment)

    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    return relinked(markdown, page.file.src_uri)


def relinked(markdown: str, page: str) -> str:
    """The page's text with links that hold in the site; what the site doesn't have (code, folders) is its text alone."""
    source = next((outside for outside, inside in OUTSIDE.items() if inside == page), f"docs/{page}")

    def moved(match: re.Match[str]) -> str:
        text, target, anchor, picture, caption, file = match.groups()
        address = file if picture else target
        if not address or "://" in address:
            return match.group()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), address))
        inside = OUTSIDE.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if inside is None or not (ROOT / path).is_file():
            return caption if picture else text
        there = posixpath.relpath(inside, posixpath.dirname(page) or ".")
        return f"![{caption}]({there})" if picture else f"[{text}]({there}{anchor or ''})"

    return LINK.sub(moved, markdown)
