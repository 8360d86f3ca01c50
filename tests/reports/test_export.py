"""Exports: transformers loads the backbone, jala_ray the whole model, in one call each; the card tells what is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalTokenNotFoundError
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoTokenizer

import jala_ray
from jala_ray import storage
from jala_ray.commands import export as command
from jala_ray.models.pixels import normalise_pixels
from jala_ray.presets import PRESETS
from jala_ray.training import checkpoint, history
from jala_ray.training.checkpoint import Position
from jala_ray.training.export import write_export
from jala_ray.training.learner import Learner
from jala_ray.types import ConfigError, StorageError, UserError
from tests.support import make_assets, make_learner, small

IMAGE = 28


def run_folder(root: Path, name: str = "tiny", **values: Any) -> tuple[Path, Learner]:
    """A run folder with one checkpoint after 40 steps, and what it holds."""
    config = replace(small(PRESETS[name], **values), name="a_run")
    assets = make_assets(config)
    learner = make_learner(config, assets)
    checkpoint.write(root / "made", config, learner, assets, None, Position(40, 1, 240))
    run = root / "a_run"
    storage.upload_dir(root / "made", history.address(str(run), 40))
    rows = [{"step": 40, "attempt": 1, "loss": 1.5, "val/lab/loss_mcp": 2.25}, {"step": 50, "attempt": 1, "loss": 99.0}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 6')
    return run, learner


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Learner]:
    root = tmp_path_factory.mktemp("export")
    run, learner = run_folder(root)
    assert command.run(command.Arguments(str(run), str(root / "out"))) == 0
    return root / "out", learner


def equal(one: Learner, other: Learner) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_whole_model_comes_back(exported: tuple[Path, Learner]) -> None:
    out, learner = exported
    loaded = jala_ray.load(str(out))
    assert equal(learner, loaded.learner) and loaded.position == Position(40, 1, 240)
    assert loaded.assets.text.decode(loaded.assets.text.encode("a hand")) == "a hand"
    assert loaded.assets.motion.encode(torch.zeros(1, 15, 99)).shape == (1, loaded.assets.motion.K)


def test_a_run_folder_is_its_newest_checkpoint(exported: tuple[Path, Learner]) -> None:
    out, learner = exported
    assert equal(learner, jala_ray.load(str(out.parent / "a_run")).learner)


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_the_backbone(tmp_path: Path, tied: bool) -> None:
    """Its own class, every tensor in its place, and the same hidden states for a causal text with a picture."""
    run, learner = run_folder(tmp_path, model__backbone__language__tie_embeddings=tied)
    write_export(str(run), str(tmp_path / "out"), shard_bytes=50_000)
    assert len(list((tmp_path / "out" / "backbone").glob("model-*.safetensors"))) > 2
    model, told = AutoModelForImageTextToText.from_pretrained(tmp_path / "out" / "backbone", output_loading_info=True)
    assert not any(told.values()) and type(model).__name__ == "InternVLForConditionalGeneration"
    text = AutoTokenizer.from_pretrained(tmp_path / "out" / "backbone")
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, IMAGE, IMAGE), np.uint8))
    own = learner.vla.backbone.eval()
    words = text("a hand moves")["input_ids"]
    ids = torch.tensor([[*words, model.config.image_token_id, *words]])
    at_image = ids == text.convert_tokens_to_ids("<IMG_CONTEXT>")
    assert own.image_tokens == int(at_image.sum()) == 1
    with torch.no_grad():
        theirs = model.eval()(input_ids=ids, pixel_values=normalise_pixels(pixels)).logits
        embedded = own.embed_text(ids)
        embedded[at_image] = own.encode_image(pixels)[0]
        n = ids.shape[1]
        mask = torch.ones(n, n, dtype=torch.bool).tril()[None, None]
        final, _, _ = own(embedded, mask, torch.arange(n)[None])
        torch.testing.assert_close(own.lm_logits(final), theirs, atol=1e-4, rtol=1e-4)


def test_half_precision_is_rounded_once(tmp_path: Path) -> None:
    run, learner = run_folder(tmp_path)
    jala_ray.export(str(run), str(tmp_path / "out"), "bfloat16")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()} == {torch.bfloat16}
    loaded = jala_ray.load(str(tmp_path / "out")).learner.state_dict()
    assert all(torch.equal(loaded[name], tensor.bfloat16().float()) for name, tensor in learner.state_dict().items())
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "out" / "backbone").dtype == torch.bfloat16


def test_a_run_begins_with_an_export(exported: tuple[Path, Learner]) -> None:
    out, learner = exported
    config = small(PRESETS["tiny"], seed=5)
    assets = make_assets(config)
    begun = make_learner(config, assets)
    assert not equal(begun, learner)
    assert checkpoint.take_over(begun, out, config, assets).new == ()
    assert equal(begun, learner)


def test_the_card_tells_what_is_known(exported: tuple[Path, Learner]) -> None:
    out, learner = exported
    card = ModelCard.load(out / "README.md")
    front: dict[str, Any] = card.data.to_dict()
    assert front["library_name"] == "jala_ray" and front["license"] == "other" and "jala" in front["tags"]
    backbone = sum(tensor.numel() for tensor in learner.vla.backbone.state_dict().values())
    for fact in (
        "a_run",
        "40 steps",
        f"{backbone:,}",
        "| loss | 1.5 |",
        "| val/lab/loss_mcp | 2.25 |",
        "not been evaluated",
    ):
        assert fact in card.text, fact
    assert "99" not in card.text, "figures are those of the checkpoint, not of steps after it"
    (out / "README.md").write_text("edited")
    assert jala_ray.load(str(out)).position.step == 40, "the card may be edited"
    (out / "README.md").write_text(str(card))


def test_the_card_shows_an_evaluation_of_this_checkpoint_alone(tmp_path: Path) -> None:
    run, _ = run_folder(tmp_path)
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    (evaluation / "table.md").write_text("| row | MPJPE |\n| --- | --- |\n| a_run | 7.31 |\n")
    facts = {"checkpoints": {"a_run": history.address(str(run), 40)}}
    (evaluation / "evaluation.json").write_text(json.dumps({"facts": facts}))
    jala_ray.export(str(run), str(tmp_path / "out"), evaluation=str(evaluation))
    assert "| a_run | 7.31 |" in (tmp_path / "out" / "README.md").read_text()
    facts["checkpoints"]["a_run"] = history.address(str(run), 30)
    (evaluation / "evaluation.json").write_text(json.dumps({"facts": facts}))
    with pytest.raises(ConfigError, match="step-00000040"):
        jala_ray.export(str(run), str(tmp_path / "other"), evaluation=str(evaluation))
    assert not (tmp_path / "other").exists()


def test_what_is_there_is_not_overwritten(exported: tuple[Path, Learner]) -> None:
    out, _ = exported
    with pytest.raises(StorageError, match="out"):
        jala_ray.export(str(out.parent / "a_run"), str(out))
    with pytest.raises(ConfigError, match="checkpoint"):
        jala_ray.export(str(out.parent / "nowhere"), str(out.parent / "new"))


class Hub:
    """What was asked of the hub."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.repos: dict[str, bool] = {}
        self.files: dict[str, set[str]] = {}
        self.error = error
        monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", self._create)
        monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", self._upload)

    def _create(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        if self.error is not None:
            raise self.error
        assert exist_ok
        self.repos[repo_id] = private

    def _upload(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        assert repo_id in self.repos and commit_message
        self.files[repo_id] = {str(p.relative_to(folder_path)) for p in folder_path.rglob("*") if p.is_file()}


def test_push(exported: tuple[Path, Learner], monkeypatch: pytest.MonkeyPatch) -> None:
    out, _ = exported
    hub = Hub(monkeypatch)
    assert jala_ray.push_to_hub(str(out), "me/hands").endswith("/me/hands")
    assert hub.repos == {"me/hands": True}
    assert {"README.md", "COMMIT.json", "model.safetensors", "backbone/model.safetensors"} <= hub.files["me/hands"]
    with pytest.raises(ConfigError, match="jala export"):
        jala_ray.push_to_hub(history.address(str(out.parent / "a_run"), 40), "me/hands")
    Hub(monkeypatch, LocalTokenNotFoundError("no token"))
    with pytest.raises(UserError, match="hf auth login"):
        jala_ray.push_to_hub(str(out), "me/hands")


def test_exports_on_s3(tmp_path: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = storage.StorageOptions(endpoint_url=s3_endpoint, region="us-east-1")
    import boto3

    boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1").create_bucket(Bucket="models")
    run, learner = run_folder(tmp_path)
    jala_ray.export(str(run), "s3://models/out", options=options)
    assert equal(learner, jala_ray.load("s3://models/out", options).learner)
    hub = Hub(monkeypatch)
    jala_ray.push_to_hub("s3://models/out", "me/hands", private=False, options=options)
    assert hub.repos == {"me/hands": False} and "README.md" in hub.files["me/hands"]
