from __future__ import annotations

import copy
import json
import math
import warnings

import pytest
import torch
from torch import Tensor

from jala_ray.hands.features import features_to_pose, pose_to_features
from jala_ray.hands.rotations import axis_angle_to_matrix
from jala_ray.tokenizer.model import MotionTokenizer, TokenizerConfig
from jala_ray.tokenizer.quality import CodebookCollapse, check_collapse, codebook_use, measure_quality
from jala_ray.tokenizer.training import FitResult
from jala_ray.types import Hand, UserError


class Shifted(MotionTokenizer):
    """Decodes to the features it last encoded, with a known error."""

    def encode(self, features: Tensor) -> Tensor:
        self.features = features
        return super().encode(features)

    def decode(self, ids: Tensor) -> Tensor:
        theta, rot, wrist = features_to_pose(self.features, Hand.RIGHT)
        turn = axis_angle_to_matrix(torch.tensor([0.0, 0.0, math.radians(7.0)]))
        return pose_to_features(turn @ theta, rot, wrist + torch.tensor([0.03, 0.0, 0.04]), Hand.RIGHT)


def test_known_errors_are_measured(held_out: Tensor) -> None:
    tokenizer = Shifted(TokenizerConfig(width=8, levels=2, codes=4))
    quality = measure_quality(tokenizer, held_out, torch.full((64,), int(Hand.RIGHT)))
    assert quality["wrist_cm"] == pytest.approx(5.0, abs=1e-3)
    assert quality["wrist_rotation_deg"] == pytest.approx(0.0, abs=0.05)
    assert quality["finger_rotation_deg"] == pytest.approx(7.0, abs=1e-2)
    assert 2.0 < quality["mpjpe_cm"] < 12.0  # the shift, more or less the fingers' turn
    assert quality["chunks"] == 64 and quality["vectors"] == 256


def test_trained_quality_is_reported_for_both_hands(trained: FitResult, held_out: Tensor) -> None:
    side = torch.arange(64) % 2
    quality = measure_quality(trained.tokenizer, held_out, side, batch=10)
    assert json.loads(json.dumps(quality)) == quality
    assert quality["mpjpe_cm"] < 5.0 and quality["wrist_cm"] < 5.0  # the hand travels tens of centimetres
    assert quality["wrist_rotation_deg"] < 6.0 and quality["finger_rotation_deg"] < 9.0
    for part in ("wrist", "finger"):
        for measure in ("usage", "perplexity"):
            table = torch.tensor(quality[part][measure])
            assert table.shape == (2, 2)
    right = measure_quality(trained.tokenizer, held_out[1::2], side[1::2])
    left = measure_quality(trained.tokenizer, held_out[::2], side[::2])
    assert (left["mpjpe_cm"] + right["mpjpe_cm"]) / 2 == pytest.approx(quality["mpjpe_cm"], rel=1e-4)
    check_collapse(quality)


def test_usage_and_perplexity() -> None:
    tokenizer = MotionTokenizer(TokenizerConfig(width=8, groups=1, levels=2, codes=4))
    codes = torch.zeros(2, 2, 1, 4, 2, dtype=torch.int64)  # (C, part, group, time, level)
    codes[:, 0, 0, :, 1] = torch.arange(4)  # wrist level 1: all four, evenly
    codes[0, 1, 0, :, 0] = 2  # finger level 0: two of four, evenly
    use = codebook_use(tokenizer, codes.flatten(1) + tokenizer.token_slots * 4)
    assert use["wrist"]["usage"] == [[0.25, 1.0]] and use["finger"]["usage"] == [[0.5, 0.25]]
    assert use["wrist"]["perplexity"][0] == pytest.approx([1.0, 4.0])
    assert use["finger"]["perplexity"][0] == pytest.approx([2.0, 1.0])


HEALTHY = {
    "codes": 512,
    "vectors": 10_000,
    "wrist": {"usage": [[0.9, 0.8]], "perplexity": [[300.0, 250.0]]},
    "finger": {"usage": [[0.9, 0.8]], "perplexity": [[300.0, 250.0]]},
}


def test_healthy_codebooks_pass_in_silence() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_collapse(HEALTHY) == []


@pytest.mark.parametrize(("measure", "value"), [("usage", 0.02), ("perplexity", 3.0)])
def test_collapse_raises_and_names_the_codebook(measure: str, value: float) -> None:
    quality = copy.deepcopy(HEALTHY)
    quality["finger"][measure][0][1] = value
    with pytest.raises(CodebookCollapse, match=f"finger, group 0, level 1: {measure}.*Train longer"):
        check_collapse(quality)


def test_a_little_used_codebook_warns() -> None:
    quality = copy.deepcopy(HEALTHY)
    quality["wrist"]["perplexity"][0][0] = 60.0
    with pytest.warns(UserWarning, match="wrist, group 0, level 0: perplexity 60.0 of 512"):
        [line] = check_collapse(quality)
    assert "expected 102.4" in line


def test_limits_follow_the_vectors_seen() -> None:
    """Ten chunks can't use more than 40 codes; that is no collapse."""
    few = copy.deepcopy(HEALTHY) | {"vectors": 40}
    for part in ("wrist", "finger"):
        few[part] = {"usage": [[30 / 512] * 2], "perplexity": [[25.0] * 2]}
    assert check_collapse(few) == []
    with pytest.raises(CodebookCollapse):
        check_collapse(few | {"vectors": 10_000})


def test_a_collapsed_tokenizer_is_caught(held_out: Tensor) -> None:
    tokenizer = MotionTokenizer(TokenizerConfig(width=8, levels=2, codes=64)).eval()
    for name in ("wrist", "finger"):
        tokenizer.part(name).codebooks.vectors[:, :, 1:] = 1e3
    quality = measure_quality(tokenizer, held_out, torch.ones(64))
    with pytest.raises(CodebookCollapse, match=r"perplexity 1\.0 of 64 codes, needs 3\.2"):
        check_collapse(quality)


def test_bad_input_is_refused(held_out: Tensor) -> None:
    tokenizer = MotionTokenizer(TokenizerConfig(width=8, levels=2, codes=4))
    with pytest.raises(UserError, match="one side for each"):
        measure_quality(tokenizer, held_out, torch.zeros(3))
    with pytest.raises(UserError, match=r"Hand\.LEFT"):
        measure_quality(tokenizer, held_out, torch.full((64,), 2))
