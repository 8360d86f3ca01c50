"""Text is decoded from what training lays out, as training would predict it, alone or in a batch; what was learned comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from jala_ray.data.samples.collate import Laid, collate
from jala_ray.data.samples.draw import draw, generator
from jala_ray.data.samples.layout import TOKEN_COLUMNS
from jala_ray.data.samples.source import Look, Pictures, Sample
from jala_ray.data.sampling.plan import PlanRow
from jala_ray.generation import Generator
from jala_ray.generation.prompt import TEMPLATE, lay_out_description
from jala_ray.presets import PRESETS
from jala_ray.training.checkpoint import Loaded, Position
from jala_ray.types import UserError
from tests.support import A, Kind, L, MemorySource, U, make_assets, make_builder, make_learner, small

TEXTS = ("The hand moves a cup.", "A left hand moves.", "Cup up", "Both hands move a cup, a cup and a cup again.")
KINDS = [
    Kind("description", (A, L), 2),
    Kind("description", (L, L), 1),
    Kind("description", (L, U), 2),
    Kind("description", (L, L), 3, ((0, 1),)),
]
PRESETS_WITH_TEXT = ["tiny", "tiny_no_lsp", "tiny_vjepa", "tiny_next_token", "tiny_next_token_dino"]


STEPS = 90
ALIKE = [Kind("description", (A, L), 1)] * len(TEXTS)
"""Told apart by their motion alone, where they have one picture."""


@dataclass
class Described(MemorySource):
    """Each clip has a text of its own; clips that are alike have one picture."""

    def _pictures(self, row: int, boundaries: Sequence[int]) -> Pictures:
        return super()._pictures(0 if self.kinds == ALIKE else row, boundaries)

    def _sample(self, row: int) -> Sample:
        sample = super()._sample(row)
        assert isinstance(sample, Sample)
        return replace(sample, description=TEXTS[row])


def model(name: str = "tiny", **values: object) -> Generator:
    config = small(PRESETS[name], **values)
    assets = make_assets(config)
    learner = make_learner(config, assets)
    with torch.no_grad():  # a random model hardly prefers any token
        learner.vla.backbone.words.weight.mul_(20)
    return Generator(Loaded(config, learner, assets, Position()), device=torch.device("cpu"))


def clips(of: Generator, kinds: list[Kind] = KINDS) -> list[tuple[Sample, Pictures]]:
    source, boundaries = Described(kinds, of.assets), [0] if of.config.objective.layout.frames else []
    samples = [source._sample(row) for row in range(len(kinds))]
    assert all(isinstance(sample, Sample) for sample in samples)
    pictures = source.pictures([Look(sample, boundaries) for sample in samples])  # type: ignore[arg-type]
    return [(sample, seen) for sample, seen in zip(samples, pictures, strict=True) if not isinstance(seen, UserError)]  # type: ignore[misc]


def as_trained(of: Generator, row: int, kinds: list[Kind] = KINDS) -> Laid:
    """The clip's sample as training lays it out, in the first epoch that draws the first template for it."""
    config = of.config
    builder = make_builder(config, Described(kinds, of.assets), len(kinds)).builder
    sample = Described(kinds, of.assets)._sample(row)

    def template(epoch: int) -> int:
        return draw(generator(config.seed, epoch, row), sample, 4, config.objective.layout).template  # type: ignore[arg-type]

    epoch = next(epoch for epoch in range(1000) if template(epoch) == TEMPLATE)
    (laid,), errors = builder.lay_out([PlanRow(epoch, row, row)], 0)
    assert not errors
    return laid


@pytest.mark.parametrize("name", PRESETS_WITH_TEXT)
def test_the_prompt_is_what_training_lays_out_before_the_answer(name: str) -> None:
    of = model(name)
    for row, (sample, pictures) in enumerate(clips(of)):
        trained, prompt = as_trained(of, row), lay_out_description(sample, pictures, of.recipe)
        length, answer = len(prompt), of.assets.text.encode(TEXTS[row])
        for column in TOKEN_COLUMNS:
            whole, mine = trained.columns[column], prompt.columns[column]
            if column == "text_target":  # which token comes first is for the model to say
                assert (mine[:-1] == -1).all() and whole[length - 1] == answer[0]
            else:
                np.testing.assert_array_equal(mine, whole[:length], err_msg=column)
        assert trained.columns["ids"][length:].tolist() == [*answer, *of.assets.text.assistant_close()]
        np.testing.assert_array_equal(prompt.images, trained.images)
        assert prompt.boundaries == trained.boundaries and prompt.pairs == trained.pairs == []


class Logits:
    """Of each row, step by step."""

    def __init__(self, rows: int) -> None:
        self.rows: list[list[Tensor]] = [[] for _ in range(rows)]

    def __call__(self, rows: Tensor, logits: Tensor) -> None:
        for row, mine in zip(rows.tolist(), logits, strict=True):
            self.rows[row].append(mine.clone())


@torch.no_grad()
def teacher_forced(of: Generator, clip: tuple[Sample, Pictures], said: list[int]) -> Tensor:
    """Logits (len(said) + 1, text vocabulary) of the answer's tokens by one whole forward pass of training."""
    laid = lay_out_description(*clip, of.recipe)
    columns, length = laid.columns, len(laid)
    void = {"ids": said, "scored": 0, "state": 0, "read": 0}
    more = {name: np.broadcast_to(void.get(name, -1), (len(said),)) for name in columns}
    whole = {name: np.concatenate([column, more[name]]) for name, column in columns.items()}
    batch = collate([replace(laid, columns=whole)], packing=False, pad_multiple=8)
    extra = of.learner.objective.extra(batch, of.learner.features(batch))
    out = of.learner.vla(batch, (), extra, everywhere=True)
    return of.learner.vla.backbone.lm_logits(out.final[length - 1 : length + len(said)])


@pytest.mark.parametrize("name", PRESETS_WITH_TEXT)
def test_token_by_token_is_teacher_forcing(name: str) -> None:
    of = model(name)
    of.learner.double()
    seen = Logits(len(KINDS))
    of.describe(clips(of), most=12, watch=seen)
    lengths = set()
    for clip, logits in zip(clips(of), seen.rows, strict=True):
        found = torch.stack(logits)
        said = found[:-1].argmax(-1).tolist()
        expected = teacher_forced(of, clip, said)
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
        lengths.add(len(said))
    assert max(lengths) > 2


def test_a_batch_of_unlike_clips_equals_each_alone() -> None:
    of = model()
    given = clips(of)
    sequences = {len(lay_out_description(*clip, of.recipe)) for clip in given}
    assert len(sequences) == len(given), "no two prompts are of one length"
    together = of.describe(given, most=20)
    assert together == [of.describe([clip], most=20)[0] for clip in given]
    assert together == of.describe(given[::-1], most=20)[::-1] and len({said.text for said in together}) > 1


def test_a_text_ends_by_the_model_or_at_the_most_tokens() -> None:
    of = model()
    (long,), passes = of.describe(clips(of)[:1], most=5), of.passes
    assert not long.ended and passes == 6
    (longer,) = of.describe(clips(of)[:1], most=9)
    assert longer.text.startswith(long.text) and len(longer.text) > len(long.text)
    assert of.describe([]) == []


def test_what_was_learned_by_heart_comes_back() -> None:
    """Of four clips with one picture, told apart by their motion alone."""
    of = model()
    learner, given = of.learner.train(), clips(of, ALIKE)
    batch = collate([as_trained(of, row, ALIKE) for row in range(len(ALIKE))], packing=False)
    optimizer = torch.optim.AdamW([p for p in learner.parameters() if p.requires_grad], 5e-3)
    assert [said.text for said in of.describe(given)] != [*TEXTS]
    for _ in range(STEPS):
        loss = learner(batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learner.eval()
    seen = Logits(len(ALIKE))
    found = of.describe(given, watch=seen)
    assert [said.text for said in found] == [*TEXTS] and all(said.ended for said in found)
    for clip, logits, text in zip(given, seen.rows, TEXTS, strict=True):
        said = of.assets.text.encode(text)
        torch.testing.assert_close(torch.stack(logits), teacher_forced(of, clip, said), atol=1e-3, rtol=0)
        assert torch.stack(logits).argmax(-1).tolist() == [*said, of.assets.text.im_end]
