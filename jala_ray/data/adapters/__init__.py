"""Adapters: real sources -> clips, a file per source. A file that is added is an adapter that is added; `base.Adapter` is the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jala_ray.data.adapters.base import ADAPTERS, Adapter

if TYPE_CHECKING:
    from jala_ray.data.adapters.arctic import Arctic
    from jala_ray.data.adapters.dex_retargeting import DexRetargeting
    from jala_ray.data.adapters.hot3d import Hot3d
    from jala_ray.data.adapters.video_folder import VideoFolder
    from jala_ray.data.adapters.vitra import Vitra

__all__ = ["ADAPTERS", "Adapter", "Arctic", "DexRetargeting", "Hot3d", "VideoFolder", "Vitra"]


def __getattr__(name: str) -> Any:
    """An adapter's class by its own name, loaded when it is asked for."""
    if name in __all__:
        return next(adapter for adapter in ADAPTERS.values() if adapter.__name__ == name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
