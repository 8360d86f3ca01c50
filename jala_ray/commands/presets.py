"""List the named runs: what each is, and what it changes in its base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jala_ray.parsing import diff

BASES = {"jala": "", "tiny": "jala", "demo": "tiny"}
"""Preset -> the one that it is compared with; the others are variants of jala or tiny."""


@dataclass(frozen=True)
class Arguments:
    """List the presets of `jala pretrain` and `jala tokenizer`: name, what it is, and the settings that differ from its base."""

    settings: bool = True
    """Show the settings that differ."""


def run(arguments: Arguments) -> int:
    from jala_ray import presets

    print("jala pretrain PRESET")
    tiny = {name for name in presets.PRESETS if name.startswith("tiny_")}
    for name, config in presets.PRESETS.items():
        if name in tiny:
            continue
        twin = f"  (tiny twin: tiny_{name})" if f"tiny_{name}" in tiny else ""
        print(f"  {name}: {presets.about(name)}{twin}")
        base = presets.PRESETS.get(BASES.get(name, "jala"))
        if base is not None and arguments.settings:
            _changes(diff(base, config))
    print("\njala tokenizer PRESET")
    for name, config in presets.TOKENIZER_PRESETS.items():
        print(f"  {name}: {presets.about_tokenizer(name)}")
        if config is not presets.TOKENIZER and arguments.settings:
            _changes(diff(presets.TOKENIZER, config))
    return 0


def _changes(found: dict[str, tuple[Any, Any]]) -> None:
    for key, (was, now) in found.items():
        other_kind = "objective.kind" in found and key.startswith("objective.") and None in (was, now)
        if key != "name" and not other_kind:
            print(f"      {key}: {was} -> {now}")
