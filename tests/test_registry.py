"""Kinds are found by the names of files and entry points, loaded when they are used, and refused by name."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Literal

import pytest

from jala_ray import registry
from jala_ray.config import OBJECTIVES, LayoutSpec, ObjectiveConfig, RunConfig
from jala_ray.config.evaluators import EVALUATORS, Evaluator
from jala_ray.data.adapters import ADAPTERS
from jala_ray.hands.metrics import METRICS, Metric
from jala_ray.objectives.base import Objective
from jala_ray.parsing import from_dict, override, to_dict
from jala_ray.presets import TINY, VARIANTS
from jala_ray.registry import Registry
from jala_ray.sweeps.metrics import METRICS as OF_SWEEPS
from jala_ray.sweeps.metrics import choose
from jala_ray.sweeps.spaces import SPACES, bind, load
from jala_ray.types import DOMAINS, ConfigError
from tests.support import small

KIND = """
from {package}.base import KINDS
@KINDS.register({name!r}, place={place})
class Kind:
    pass
"""


@pytest.fixture
def kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Registry[type]:
    """A package of two kinds and a helper, and one kind from elsewhere."""
    package = f"kinds_{request.node.name.strip('[]').replace('-', '_')}"
    folder = tmp_path / package
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "base.py").write_text(
        f"from jala_ray.registry import Registry\nKINDS = Registry('kind', {package!r}, {package + '.kinds'!r}, dash=True)"
    )
    (folder / "_helper.py").write_text("raise RuntimeError('no kind')")
    (folder / "a_late.py").write_text(KIND.format(package=package, name="a-late", place=1000))
    (folder / "z_first.py").write_text(KIND.format(package=package, name="z-first", place=1))
    (folder / "misnamed.py").write_text(KIND.format(package=package, name="another", place=1))
    (tmp_path / f"{package}_theirs.py").write_text(KIND.format(package=package, name="theirs", place=2))
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("theirs", f"{package}_theirs:Kind", f"{package}.kinds")
    monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints([point]).select(group=group))
    __import__(f"{package}.base")
    return sys.modules[f"{package}.base"].KINDS


def test_names_are_read_without_an_import(kinds: Registry[type]) -> None:
    assert kinds.names() == ("a-late", "misnamed", "theirs", "z-first")
    assert not any(name.startswith(f"{kinds.package}.z_first") for name in sys.modules)
    assert "theirs" in kinds and "_helper" not in kinds and "base" not in kinds and len(kinds) == 4


def test_a_kind_is_loaded_alone(kinds: Registry[type]) -> None:
    assert kinds["z-first"].__name__ == "Kind"
    assert f"{kinds.package}.a_late" not in sys.modules
    assert kinds["theirs"].__module__ == f"{kinds.package}_theirs"


def test_lists_are_in_order(kinds: Registry[type]) -> None:
    (Path(sys.modules[kinds.package].__file__ or "").parent / "misnamed.py").unlink()
    assert list(kinds) == ["z-first", "theirs", "a-late"] and list(kinds.values())[1].__name__ == "Kind"


def test_what_is_wrong_is_named(kinds: Registry[type]) -> None:
    with pytest.raises(ConfigError, match=r"some\.field: got 'a-lat'.*Did you mean a-late"):
        kinds.find("a-lat", "some.field")
    with pytest.raises(KeyError):
        kinds["nothing"]
    with pytest.raises(ConfigError, match=r"misnamed.*a module that registers it"):
        kinds.find("misnamed")
    kinds.find("z-first")
    with pytest.raises(ConfigError, match="a name that is not taken"):
        kinds.register("z-first")(int)


def test_an_entry_point_does_not_replace_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("mpjpe", "theirs", "jala_ray.metrics")
    monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints([point]).select(group=group))
    with pytest.raises(ConfigError, match=r"mpjpe.*Rename the entry point of theirs"):
        Registry[Metric]("metric", "jala_ray.hands.metrics", "jala_ray.metrics").names()


def test_declarations_are_light() -> None:
    """Reading every declaration of ours loads no torch, Ray or transformers."""
    code = (
        "import sys\nfrom jala_ray.config import OBJECTIVES\nfrom jala_ray.config.encoders import ENCODERS\n"
        "from jala_ray.data.adapters import ADAPTERS\nfrom jala_ray.hands.metrics import METRICS\n"
        "assert all(map(dict, (METRICS, ENCODERS, OBJECTIVES, ADAPTERS)))\n"
        "print([m for m in ('torch', 'ray', 'transformers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_metrics_are_complete() -> None:
    assert list(METRICS)[:4] == ["mpjpe", "pa_mpjpe", "mwte", "mde"]
    for key, metric in METRICS.items():
        assert metric.key == key and metric.label and metric.unit and metric.text and callable(metric.function)
        assert metric.heading == metric.label or metric.unit in metric.heading


def test_evaluators_are_complete() -> None:
    assert list(EVALUATORS)[:4] == ["monitors", "validation_loss", "generation", "function"]
    for name, kind in EVALUATORS.items():
        assert (kind.__doc__ or "").strip().partition("\n")[0].endswith("."), name
        assert kind.part is not Evaluator.part and kind.figures is not Evaluator.figures, name
        assert kind.set_by is None or kind.set_by in {f"train.{key}" for key in to_dict(TINY)["train"]}, name


def test_an_unknown_encoder_is_named() -> None:
    with pytest.raises(ConfigError, match=r"model\.encoder\.kind.*Did you mean dinov3"):
        override(TINY, {"model.encoder.kind": "dinov4"})


def test_old_names_of_encoders_are_the_same() -> None:
    from jala_ray.models import encoders, frame_encoder

    assert encoders.FrameEncoder is frame_encoder.FrameEncoder and encoders.encoder_key is frame_encoder.encoder_key
    with pytest.raises(AttributeError, match="nothing"):
        encoders.nothing  # noqa: B018


def test_adapters_are_complete() -> None:
    assert list(ADAPTERS)[:5] == ["video-folder", "vitra", "arctic", "hot3d", "dex-retargeting"]
    for name, adapter in ADAPTERS.items():
        assert adapter.name == name and adapter.domain in DOMAINS and dataclasses.is_dataclass(adapter)


def test_an_unknown_objective_is_named() -> None:
    stored = to_dict(TINY)
    stored["objective"]["kind"] = "jalla"
    with pytest.raises(ConfigError, match=r"objective\.kind: got 'jalla'.*Did you mean jala"):
        from_dict(RunConfig, stored)


def test_objectives_are_complete() -> None:
    assert list(OBJECTIVES)[:4] == ["jala", "next_token", "lapa_actions", "lapa_codes"]
    for kind, objective in OBJECTIVES.items():
        config = objective()
        assert config.kind == kind and config.layout and kind == next(iter(to_dict(config).values()))
        module, _, name = config.implementation.partition(":")
        assert issubclass(getattr(importlib.import_module(module), name), Objective)
        assert objective.variants.items() <= VARIANTS.items() and objective.spaces.items() <= SPACES.items()
        assert all(variant.__doc__ for variant in objective.variants.values())
        if config.aligned_layer is not None:
            assert config.perceivers is not None, "z is made by a perceiver"


def test_an_objective_without_a_perceiver_is_checked_and_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Plain(ObjectiveConfig):
        kind: Literal["plain"] = "plain"  # type: ignore[assignment]

        @property
        def layout(self) -> LayoutSpec:
            return LayoutSpec(False, None, "none", "none")

    monkeypatch.setitem(OBJECTIVES._found, "plain", Plain)
    config = dataclasses.replace(small(), objective=Plain())
    config.check()
    assert from_dict(RunConfig, to_dict(config)) == config
    assert Plain.variants == {} and Plain.variants is not ObjectiveConfig.variants
    assert choose([], config, ["optim.lr"]) == (OF_SWEEPS["mpjpe"],)
    assert sorted(bind(load(["optimisation"]), config)) == ["optim.lr", "optim.warmup", "optim.weight_decay"]
