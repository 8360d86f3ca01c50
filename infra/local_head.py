"""Its older place: `jala_ray.training.local_head` is in the wheel too."""

from __future__ import annotations

from jala_ray.training.local_head import Head, free_ports, local_head

__all__ = ["Head", "free_ports", "local_head"]
