"""Decoding with the key-value cache is decoding without it, alone or in a batch, for masked and next-token models (method.md 7)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from jala_ray.config import GenerationConfig, RunConfig
from jala_ray.data.samples.collate import collate
from jala_ray.generation import Generator, Motion, Prompt
from jala_ray.generation.decoding import schedule
from jala_ray.generation.motion import mean_motion
from jala_ray.generation.prompt import lay_out, words
from jala_ray.hands.features import features_to_pose, pose_to_features
from jala_ray.hands.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from jala_ray.presets import PRESETS
from jala_ray.training.checkpoint import Loaded, Position
from jala_ray.types import ConfigError, Hand, UserError
from tests.support import MOTION, make_assets, make_learner, small

L, R = Hand.LEFT, Hand.RIGHT
KINDS = [
    ("tiny", None),
    ("tiny", "prefix"),
    ("tiny_next_token", None),
    ("tiny_next_token_dino", None),
    ("tiny_vjepa", None),
]
MARGIN = 1e-4
PASSES = 20


def generator(name: str = "tiny", ensemble: int = 1, state: str | None = None, **settings: object) -> Generator:
    config: RunConfig = small(PRESETS[name], **({"objective__state": state} if state else {}))
    assets = make_assets(config)
    assets.motion.set_stats(torch.zeros(99), torch.ones(99))
    learner = make_learner(config, assets)
    with torch.no_grad():  # a random head hardly prefers any code
        learner.vla.motion_head.weight.mul_(20)
    loaded = Loaded(config, learner, assets, Position())
    return Generator(loaded, GenerationConfig(ensemble=ensemble, **settings), torch.device("cpu"))  # type: ignore[arg-type]


def prompt(model: Generator, number: int, hands: tuple[Hand, ...] = (R,), chunks: int = 2, given: int = 0) -> Prompt:
    rng, spec, motion = np.random.default_rng(number), model.assets.spec, model.assets.motion
    image, frame = (rng.integers(0, 256, (3, side, side), np.uint8) for side in (spec.image_size, spec.frame_size))
    pictures = {"image": image} | ({"frames": frame[None]} if model.config.objective.layout.frames else {})
    codes = rng.integers(0, motion.codes, (2, given, motion.K)) + motion.token_slots.numpy() * motion.codes
    text = words("push the cup " + "away " * number, chunks, hands, given)
    return Prompt(f"clip{number}", text, hands, chunks, pictures, codes)


def mixed(model: Generator) -> list[Prompt]:
    """One and two hands, one to three chunks, with and without a given beginning."""
    return [
        prompt(model, 0, (L, R), 2),
        prompt(model, 1, (R,), 3),
        prompt(model, 2, (L,), 1),
        prompt(model, 3, (L, R), 3, given=1),
    ]


class Passes:
    """What went into and came out of every pass."""

    def __init__(self) -> None:
        self.ids: list[Tensor] = []
        self.logits: list[Tensor] = []

    def __call__(self, ids: Tensor, logits: Tensor) -> None:
        self.ids.append(ids.clone())
        self.logits.append(logits.clone())


@torch.no_grad()
def without_cache(model: Generator, asked: Prompt, motion: Motion, number: int, ids: Tensor) -> Tensor:
    """Logits (K, codes) of chunk `number`, whose ids are `ids` (K,) (masked) or its first few (next token), by one whole forward pass."""
    layout, vocab, vla = model.config.objective.layout, model.assets.spec.vocab, model.learner.vla
    batch = collate([lay_out(asked, model.recipe)], packing=False)
    state = torch.zeros(batch.ids.shape[1], dtype=torch.bool)
    state[batch.state_at] = True
    starts = (batch.ids[0] == vocab.mot_open).nonzero()[-len(asked.slots) :, 0].tolist()
    for slot, start in zip(asked.slots[:number], starts, strict=False):
        place = slice(start + 1, start + 1 + vocab.chunk_tokens)
        batch.ids[0, place] = torch.from_numpy(motion.ids[slot[1], slot[0]]) + vocab.text
        state[place] = False
    place = slice(starts[number] + 1, starts[number] + 1 + len(ids))
    batch.ids[0, place] = ids
    if layout.bidirectional:
        state[place] &= ids == vocab.mask
    batch.state_at = state.nonzero()[:, 0]
    features = model.learner.features(batch)
    final = vla(batch, (), model.learner.objective.extra(batch, features), everywhere=True).final
    k = torch.arange(vocab.chunk_tokens)
    shift = 1 if layout.bidirectional else 0
    hidden = final[starts[number] + shift : starts[number] + shift + vocab.chunk_tokens]
    return vla.motion_logits(hidden, k).float()


@pytest.mark.parametrize(("name", "state"), KINDS)
def test_the_cache_changes_no_logits(name: str, state: str | None) -> None:
    model = generator(name, state=state)
    masked = model.config.objective.layout.bidirectional
    for asked in (prompt(model, 0, (L, R), 2), prompt(model, 1, (R,), 3, given=1)):
        seen = Passes()
        (motion,) = model.batch([asked], seen)
        steps = PASSES if masked else model.motion.K
        assert len(seen.logits) == steps * len(asked.slots)
        for number in range(len(asked.slots)):
            for step in (0, 1, steps // 2, steps - 1):
                i = number * steps + step
                expected = without_cache(model, asked, motion, number, seen.ids[i][0])
                expected = expected if masked else expected[step : step + 1]
                torch.testing.assert_close(seen.logits[i][0], expected, atol=MARGIN, rtol=0)


@pytest.mark.parametrize(("name", "ensemble"), [("tiny", 1), ("tiny", 3), ("tiny_next_token_dino", 3)])
def test_a_batch_equals_single_clips(name: str, ensemble: int) -> None:
    model = generator(name, ensemble)
    prompts, seen = mixed(model), Passes()
    together = model.batch(prompts, seen)
    margins = torch.cat([(top[..., 0] - top[..., 1]).flatten() for top in (x.topk(2).values for x in seen.logits)])
    assert margins.min() > 1e-6  # no near tie among these passes, so rounding decides nothing
    for asked, motion in zip(prompts, together, strict=True):
        (alone,) = model.batch([asked])
        np.testing.assert_array_equal(alone.ids, motion.ids)
        np.testing.assert_allclose(alone.features, motion.features, atol=1e-5)


@pytest.mark.parametrize("name", ["tiny", "tiny_next_token"])
def test_passes_are_counted(name: str) -> None:
    model = generator(name)
    tokens = model.motion.K
    per_chunk = PASSES if name == "tiny" else tokens
    model.batch([prompt(model, 0, (L, R), 2)])
    assert model.passes == 4 * per_chunk
    model.batch(mixed(model)[:2])  # chunks of a batch share passes: L1 R1 L2 R2 beside R1 R2 R3
    assert model.passes == 8 * per_chunk


def test_the_schedule_of_passes() -> None:
    full = schedule(128, 20)
    assert (len(full), sum(full), min(full), max(full)) == (20, 128, 6, 7)
    small = schedule(32, 20)
    assert (len(small), sum(small), min(small), max(small)) == (20, 32, 1, 2)
    assert schedule(3, 20) == [1, 1, 1] and schedule(5, 1) == [5]


def test_the_most_confident_places_come_first() -> None:
    model, seen = generator(), Passes()
    (motion,) = model.batch([prompt(model, 0, chunks=1)], seen)
    mask, text = model.assets.spec.vocab.mask, model.assets.spec.vocab.text
    counts = schedule(model.motion.K, PASSES)
    for step, (ids, logits) in enumerate(zip(seen.ids, seen.logits, strict=True)):
        open_ = ids[0] == mask
        assert int(open_.sum()) == model.motion.K - sum(counts[:step])
        after = seen.ids[step + 1][0] if step + 1 < len(seen.ids) else torch.from_numpy(motion.ids[R, 0]) + text
        decided = open_ & (after != mask)
        confidence = logits[0].log_softmax(-1).max(-1).values
        left = confidence[open_ & ~decided]
        assert len(left) == 0 or confidence[decided].min() >= left.max()
        within = after[decided] - text
        best = logits[0].argmax(-1) + model.motion.token_slots * model.motion.codes
        torch.testing.assert_close(within, best[decided])


def test_a_seed_gives_one_motion_and_another_another() -> None:
    ask = lambda model: model.batch([prompt(model, 0)])[0]  # noqa: E731
    one, again, other = ask(generator(ensemble=2)), ask(generator(ensemble=2)), ask(generator(ensemble=2, seed=1))
    np.testing.assert_array_equal(one.features, again.features)
    assert (one.ids != other.ids).any()
    cold = ask(generator(ensemble=2, temperature=1e-6))
    np.testing.assert_array_equal(cold.ids[R, 0], _reencoded(ask(generator())))


def _reencoded(motion: Motion) -> np.ndarray:
    """Ids of the first chunk's own reconstruction: what an ensemble of equal members leaves for later chunks."""
    model = generator()
    return model.motion.encode(torch.from_numpy(motion.features[R, :15][None]))[0].numpy()


def test_given_chunks_stay_and_absent_hands_are_empty() -> None:
    model = generator()
    asked = prompt(model, 3, (R,), 3, given=1)
    (motion,) = model.batch([asked])
    np.testing.assert_array_equal(motion.ids[R, 0], asked.given[R, 0])
    assert not motion.features[L].any() and motion.features[R, 15:].any()
    assert motion.joints(R).shape == (45, 21, 3)
    other = replace(asked, given=(asked.given // model.motion.codes * model.motion.codes))
    assert (model.batch([other])[0].ids[R, 1] != motion.ids[R, 1]).any()


def test_the_mean_of_motions_is_a_motion() -> None:
    angle = torch.tensor([0.2, 0.6])
    turns = axis_angle_to_matrix(torch.stack([torch.zeros(2), angle, torch.zeros(2)], -1))
    theta, wrist = turns[:, None].expand(2, 15, 3, 3), torch.tensor([[0.0, 0.0, 1.0], [0.2, 0.0, 1.0]])
    mean = mean_motion(pose_to_features(theta, turns, wrist, L))
    theta, rot, wrist = features_to_pose(mean, L)
    torch.testing.assert_close(matrix_to_axis_angle(rot), torch.tensor([0.0, 0.4, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(matrix_to_axis_angle(theta[7]), torch.tensor([0.0, 0.4, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(wrist, torch.tensor([0.1, 0.0, 1.0]))


def test_for_people() -> None:
    model = generator()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    motion = model.generate(picture, "Push the cup.", 2.0, "both")
    assert motion.hands == (L, R) and motion.features.shape == (2, 30, 99)
    np.testing.assert_array_equal(model.generate(np.asarray(picture), "Push the cup.", 2.0, "both").ids, motion.ids)
    longer, asked = (model.generate(picture, "Push the cup.", seconds, "both") for seconds in (3.0, 2.5))
    assert asked.features.shape == (2, 38, 99) and asked.joints(R).shape == (38, 21, 3), "2.5 s are 38 frames"
    np.testing.assert_array_equal(asked.features, longer.features[:, :38])
    assert (model.generate(picture, "Lift the lid.", 2.0, "both").ids != motion.ids).any()
    for bad, field in (
        ({"seconds": 0.0}, "seconds"),
        ({"hands": "middle"}, "hands"),
        ({"instruction": " "}, "instruction"),
        ({"image": "nowhere.png"}, "image"),
    ):
        with pytest.raises(UserError, match=field):
            model.generate(**({"image": picture, "instruction": "Push.", "seconds": 1.0, "hands": "left"} | bad))
    with pytest.raises(ConfigError, match="passes"):
        GenerationConfig(passes=0)
    assert MOTION.tokens_per_part * 2 == model.motion.K
