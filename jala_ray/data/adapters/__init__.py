"""Adapters: real sources -> clips, one module a source. `base.Adapter` is the contract."""

from jala_ray.data.adapters.arctic import Arctic
from jala_ray.data.adapters.base import Adapter
from jala_ray.data.adapters.dexretargeting import DexRetargeting
from jala_ray.data.adapters.hot3d import Hot3d
from jala_ray.data.adapters.video_folder import VideoFolder
from jala_ray.data.adapters.vitra import Vitra

ADAPTERS: dict[str, type[Adapter]] = {
    adapter.name: adapter for adapter in (VideoFolder, Vitra, Arctic, Hot3d, DexRetargeting)
}
"""By the name on the command line."""

__all__ = ["ADAPTERS", "Adapter", "Arctic", "DexRetargeting", "Hot3d", "VideoFolder", "Vitra"]
