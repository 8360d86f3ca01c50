"""Pretrained folders that lack something: named, never filled with random numbers. And heads of their own, which stay theirs."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor
from transformers import DINOv3ViTModel, InternVLForConditionalGeneration, VJEPA2Model

from jala_ray import storage
from jala_ray.config import BackboneConfig, EncoderConfig, LanguageSizes, VisionSizes
from jala_ray.models import encoders
from jala_ray.models.backbones._internvl import InternVLBackbone
from jala_ray.models.backbones.base import Backbone
from jala_ray.models.frame_encoder import FrameEncoder
from jala_ray.training import checkpoint
from jala_ray.training.build import build_learner
from jala_ray.training.checkpoint import Position
from jala_ray.types import ConfigError
from tests.support import make_assets, small

BACKBONE = BackboneConfig(
    vision=VisionSizes(hidden=32, layers=1, heads=2, mlp=64, patch=14),
    language=LanguageSizes(hidden=32, layers=2, heads=2, kv_heads=1, mlp=64, tie_embeddings=False),
)
VOCAB = 300
ENCODERS = {kind: EncoderConfig(kind=kind) for kind in ("dinov3", "vjepa2")}
Edit = Callable[[Path], object]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Whole folders, to be copied before they are damaged."""
    root = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    models = {
        "internvl": InternVLForConditionalGeneration(InternVLBackbone.at_random(BACKBONE, VOCAB)),
        "dinov3": DINOv3ViTModel(encoders.random_config(ENCODERS["dinov3"])),
        "vjepa2": VJEPA2Model(encoders.random_config(ENCODERS["vjepa2"])),
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
    models["internvl"].save_pretrained(root / "sharded", max_shard_size="20KB")
    return {path.name: path for path in root.iterdir()}


def build(kind: str, folder: Path) -> Backbone | FrameEncoder:
    if kind in ("internvl", "sharded"):
        return Backbone.build(replace(BACKBONE, pretrained=str(folder)), text_vocab_size=VOCAB)
    return FrameEncoder.build(replace(ENCODERS[kind], pretrained=str(folder)))


def weights(edit: Callable[[dict[str, Tensor]], object]) -> Edit:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        stored = safetensors.torch.load_file(path)
        edit(stored)
        safetensors.torch.save_file(stored, path, {"format": "pt"})

    return change


def without(part: str) -> Edit:
    def change(stored: dict[str, Tensor]) -> None:
        gone = [stored.pop(name) for name in list(stored) if part in name]
        assert gone

    return weights(change)


def longer(part: str) -> Edit:
    def change(stored: dict[str, Tensor]) -> None:
        name = next(name for name in sorted(stored) if part in name and stored[name].ndim == 2)
        stored[name] = torch.cat([stored[name], stored[name][:4]])

    return weights(change)


def under_another_prefix(stored: dict[str, Tensor]) -> None:
    for name in list(stored):
        stored["module." + name] = stored.pop(name)


def cut(name: str, keep: int) -> Edit:
    """`keep` bytes from the beginning, or all but that many where it is negative."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def dangling(name: str) -> Edit:
    """A link to nothing, as the hub's cache is left with when its blobs are removed."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("../blobs/gone")

    return change


def fewer_layers(*path: str) -> Edit:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        part = config
        for key in path:
            part = part[key]
        part["num_hidden_layers"] -= 1
        for derived in ("layer_types", "out_features", "out_indices", "stage_names"):
            part.pop(derived, None)
        (folder / "config.json").write_text(json.dumps(config))

    return change


def as_pickle(folder: Path) -> None:
    """Weights of the older kind, cut."""
    torch.save(safetensors.torch.load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    cut("pytorch_model.bin", -2000)(folder)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n"


@pytest.mark.parametrize(
    "kind, edit, told",
    [
        ("internvl", without("multi_modal_projector"), r"absent: .*multi_modal_projector.* and 3 more"),
        ("internvl", without("lm_head"), r"absent: lm_head\.weight"),
        ("internvl", without("layers.1.mlp.up_proj"), r"absent: \S+layers\.1\.mlp\.up_proj\.weight\. "),
        ("internvl", weights(under_another_prefix), r"absent: .*there are others: module\."),
        ("internvl", longer("multi_modal_projector"), r"linear_1\.weight \(stored \(36, 128\), wanted \(32, 128\)\)"),
        ("internvl", fewer_layers("text_config"), r"without a place in it .*layers\.1\."),
        ("internvl", cut("config.json", 50), "config file"),
        ("internvl", lambda d: (d / "config.json").write_text("[1]"), "can be read"),
        ("internvl", as_pickle, "can be read"),
        ("sharded", lambda d: max(d.glob("model-*.safetensors")).unlink(), r"model-\d+-of-\d+\.safetensors"),
        ("sharded", cut("model.safetensors.index.json", 100), "can be read"),
        ("sharded", cut("model-00003-of-00011.safetensors", -8), r"model-00003-of-00011\.safetensors is damaged"),
        ("dinov3", without("layer.0."), r"absent: .*layer\.0\."),
        ("dinov3", longer("layer.0."), r"of other shapes: .*layer\.0\.\S+ \(stored \(68, 64\), wanted \(64, 64\)\)"),
        ("dinov3", fewer_layers(), r"without a place in it .*layer\.1\."),
        ("dinov3", cut("model.safetensors", -2000), r"model\.safetensors is damaged .*not fully covered"),
        ("dinov3", cut("model.safetensors", 20), r"model\.safetensors is damaged"),
        ("dinov3", cut("model.safetensors", 0), r"model\.safetensors is damaged"),
        ("dinov3", lambda d: (d / "model.safetensors").write_bytes(POINTER), "git lfs pull"),
        ("dinov3", dangling("model.safetensors"), r"model\.safetensors is damaged \(a link to a file that is gone\)"),
        (
            "sharded",
            dangling("model-00003-of-00011.safetensors"),
            r"model-00003-of-00011\.safetensors is damaged .*gone",
        ),
        ("vjepa2", without("encoder.layer.0.attention"), r"absent: encoder\.layer\.0\.attention"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, folders: dict[str, Path], kind: str, edit: Edit, told: str) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(folders[kind], folder)
    edit(folder)
    with pytest.raises(ConfigError, match=told):
        build(kind, folder)


def test_parts_that_nothing_uses_may_be_absent_or_more(tmp_path: Path, folders: dict[str, Path]) -> None:
    """V-JEPA 2 without its predictor, and with a classifier's head on top."""
    shutil.copytree(folders["vjepa2"], tmp_path, dirs_exist_ok=True)
    without("predictor.")(tmp_path)
    weights(lambda stored: stored.update({"classifier.weight": torch.zeros(3, 64)}))(tmp_path)
    whole, part = (build("vjepa2", folder).state_dict() for folder in (folders["vjepa2"], tmp_path))
    assert whole.keys() == part.keys() and all(torch.equal(whole[name], part[name]) for name in whole)


@pytest.fixture
def silent(tmp_path: Path, folders: dict[str, Path]) -> Path:
    """A head of its own that config.json says nothing of: the library then takes it for tied."""
    shutil.copytree(folders["internvl"], tmp_path / "silent")
    path = tmp_path / "silent" / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "tie_word_embeddings"}))
    return path.parent


def test_a_head_of_its_own_stays_so(silent: Path) -> None:
    stored = safetensors.torch.load_file(silent / "model.safetensors")
    backbone = Backbone.build(replace(BACKBONE, pretrained=str(silent)), text_vocab_size=VOCAB + 20)
    assert backbone.output is not None and backbone.text_vocab_size == VOCAB + 20
    assert torch.equal(backbone.output.weight[:VOCAB], stored["language_model.lm_head.weight"])
    embedding = backbone.language.embed_tokens.weight
    assert torch.equal(embedding[:VOCAB], stored["language_model.model.embed_tokens.weight"])
    again = Backbone.build(BACKBONE, json.loads(json.dumps(backbone.hf_config_dict())))
    again.load_state_dict(backbone.state_dict())


def test_a_head_of_its_own_goes_through_checkpoints(tmp_path: Path) -> None:
    """Stored, resumed from, loaded by itself, and taken over by `init`: the same head."""
    config = small(storage__root=str(tmp_path))
    assets = make_assets(config)
    sizes = replace(config.model.backbone, language=replace(config.model.backbone.language, tie_embeddings=False))
    made = InternVLForConditionalGeneration(InternVLBackbone.at_random(sizes, assets.spec.vocab.text))
    made.save_pretrained(tmp_path / "files")
    path = tmp_path / "files" / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "tie_word_embeddings"}))
    backbone = replace(config.model.backbone, pretrained=str(tmp_path / "files"))
    config = replace(config, model=replace(config.model, backbone=backbone))

    learner = build_learner(config, assets)
    checkpoint.write(tmp_path / "written", config, learner, assets, None, Position(1, 0, 1))
    storage.upload_dir(tmp_path / "written", str(tmp_path / "step-00000001"))
    shutil.rmtree(tmp_path / "files")  # from here on the checkpoint is enough
    loaded = checkpoint.load(str(tmp_path / "step-00000001")).learner
    again = build_learner(config, assets, json.loads((tmp_path / "written" / "architecture.json").read_text()))
    checkpoint.load_weights(again, tmp_path / "written")
    begun = build_learner(config, assets, json.loads((tmp_path / "written" / "architecture.json").read_text()))
    assert checkpoint.take_over(begun, tmp_path / "written", config, assets).taken
    for other in (loaded, again, begun):
        assert other.vla.backbone.output is not None
        assert torch.equal(other.vla.backbone.output.weight, made.lm_head.weight)
