"""Old names of modules, for programs that were written with them. They are the new modules, under another name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

PACKAGES = {
    "tune": "jala_ray.sweeps",
    "benchmarks.study": "jala_ray.studies.alignment",
}
"""All modules below them, which have kept their names."""

MODULES = {
    "benchmarks.study": "jala_ray.studies.alignment",
    "jala_ray.checks": "jala_ray.config.checking",
    "jala_ray.data.__main__": "jala_ray.commands.manifests",
    "jala_ray.data.adapters.dexretargeting": "jala_ray.data.adapters.dex_retargeting",
    "jala_ray.data.assets": "jala_ray.data.samples.assets",
    "jala_ray.data.cache_making": "jala_ray.data.cache.making",
    "jala_ray.data.cache_part": "jala_ray.data.cache.part",
    "jala_ray.data.cache_records": "jala_ray.data.cache.records",
    "jala_ray.data.cache_source": "jala_ray.data.cache.source",
    "jala_ray.data.catalogue": "jala_ray.data.sampling.catalogue",
    "jala_ray.data.chunks": "jala_ray.data.samples.chunks",
    "jala_ray.data.collate": "jala_ray.data.samples.collate",
    "jala_ray.data.draw": "jala_ray.data.samples.draw",
    "jala_ray.data.examine": "jala_ray.data.manifest.examine",
    "jala_ray.data.foresight": "jala_ray.data.samples.foresight",
    "jala_ray.data.instructions": "jala_ray.data.samples.instructions",
    "jala_ray.data.layout": "jala_ray.data.samples.layout",
    "jala_ray.data.mixture": "jala_ray.data.sampling.mixture",
    "jala_ray.data.parts": "jala_ray.data.manifest.files",
    "jala_ray.data.places": "jala_ray.data.manifest.places",
    "jala_ray.data.plan": "jala_ray.data.sampling.plan",
    "jala_ray.data.prepare_clips": "jala_ray.data.prepare.clips",
    "jala_ray.data.prepare_progress": "jala_ray.data.prepare.progress",
    "jala_ray.data.rowfile": "jala_ray.data.manifest.rowfile",
    "jala_ray.data.rows": "jala_ray.data.manifest.rows",
    "jala_ray.data.sampling.draw": "jala_ray.data.samples.draw",
    "jala_ray.data.segments": "jala_ray.data.prepare.segments",
    "jala_ray.data.set_aside": "jala_ray.data.manifest.set_aside",
    "jala_ray.data.source": "jala_ray.data.samples.source",
    "jala_ray.data.steps": "jala_ray.data.samples.steps",
    "jala_ray.data.validation": "jala_ray.data.manifest.validation",
    "jala_ray.data.writing": "jala_ray.data.manifest.writing",
    "jala_ray.evaluation.clip_videos": "jala_ray.reports.kit.clip_videos",
    "jala_ray.evaluation.figures": "jala_ray.reports.kit.figures",
    "jala_ray.evaluation.hidden": "jala_ray.evaluation.latent_space.hidden",
    "jala_ray.evaluation.html": "jala_ray.reports.kit.html",
    "jala_ray.evaluation.inspect": "jala_ray.reports.inspection.page",
    "jala_ray.evaluation.inspect_census": "jala_ray.reports.inspection.census",
    "jala_ray.evaluation.inspect_findings": "jala_ray.reports.inspection.findings",
    "jala_ray.evaluation.inspect_motion": "jala_ray.reports.inspection.motion",
    "jala_ray.evaluation.inspect_parts": "jala_ray.reports.inspection.parts",
    "jala_ray.evaluation.inspect_pictures": "jala_ray.reports.inspection.pictures",
    "jala_ray.evaluation.inspect_quarantine": "jala_ray.reports.inspection.quarantine",
    "jala_ray.evaluation.inspect_sample": "jala_ray.reports.inspection.sample",
    "jala_ray.evaluation.inspect_sections": "jala_ray.reports.inspection.sections",
    "jala_ray.evaluation.latents": "jala_ray.evaluation.latent_space.latents",
    "jala_ray.evaluation.motion_clips": "jala_ray.reports.motion.clips",
    "jala_ray.evaluation.motion_inputs": "jala_ray.reports.motion.inputs",
    "jala_ray.evaluation.motion_job": "jala_ray.evaluation.job",
    "jala_ray.evaluation.motion_latents": "jala_ray.reports.motion.latents",
    "jala_ray.evaluation.motion_publish": "jala_ray.reports.motion.publish",
    "jala_ray.evaluation.motion_report": "jala_ray.reports.motion.page",
    "jala_ray.evaluation.motion_tables": "jala_ray.reports.motion.tables",
    "jala_ray.evaluation.overlay": "jala_ray.reports.kit.overlay",
    "jala_ray.evaluation.probes": "jala_ray.evaluation.latent_space.probes",
    "jala_ray.evaluation.publish": "jala_ray.reports.run.publish",
    "jala_ray.evaluation.quality": "jala_ray.reports.run.quality",
    "jala_ray.evaluation.report": "jala_ray.reports.run.page",
    "jala_ray.evaluation.run_folder": "jala_ray.reports.run.folder",
    "jala_ray.evaluation.sections": "jala_ray.reports.run.sections",
    "jala_ray.evaluation.widgets": "jala_ray.reports.kit.widgets",
    "jala_ray.models.backbone": "jala_ray.models.backbones.base",
}


def new_name(old: str) -> str | None:
    """Where a module lies now; None for a name that was never moved."""
    if old in MODULES:
        return MODULES[old]
    for package, place in PACKAGES.items():
        if old.startswith(f"{package}."):
            return place + old.removeprefix(package)
    return None


def names_of(package: str, module: str) -> Callable[[str], Any]:
    """A `__getattr__` for a package that has the name of a module which is in it now: that one's names, loaded when asked for."""

    def find(name: str) -> Any:
        if name.startswith("__") or importlib.util.find_spec(f"{package}.{name}") is not None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{module}"), name)

    return find


class OldNames(MetaPathFinder, Loader):
    """Asked first: a package under its old name would lead to a second copy of what is in it."""

    def __init__(self) -> None:
        self.specs: dict[str, ModuleSpec | None] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        new = new_name(fullname)
        found = importlib.util.find_spec(new) if new is not None else None
        if found is None:
            return None
        spec = ModuleSpec(fullname, self, origin=found.origin, is_package=found.submodule_search_locations is not None)
        spec.has_location = found.has_location
        return spec

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        new = new_name(spec.name)
        assert new is not None
        warnings.warn(f"{spec.name} is {new} now", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        self.specs[new] = module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """It has run under its new name, and goes on being that."""
        module.__spec__ = self.specs[module.__name__]

    def get_code(self, fullname: str) -> types.CodeType | None:
        """For `python -m OLD.NAME`."""
        new = new_name(fullname)
        found = importlib.util.find_spec(new) if new is not None else None
        return found.loader.get_code(new) if found is not None and found.loader is not None else None  # pyright: ignore[reportAttributeAccessIssue]


def install() -> None:
    if not any(isinstance(finder, OldNames) for finder in sys.meta_path):
        sys.meta_path.insert(0, OldNames())
