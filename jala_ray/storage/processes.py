"""Whether a process that left something behind is still there."""

from __future__ import annotations

from pathlib import Path


def began(pid: int) -> int | None:
    """When a process was started, in clock ticks since boot, which a later process of the same number does not share.

    None where there is no such process (a zombie is none); 0 where the system does not say (no /proc).
    """
    if not Path("/proc/self/stat").exists():
        return 0
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(rest[18])
