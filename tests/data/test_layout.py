"""The token sequence of a sample (method.md 2, 3), read back token by token."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jala_ray.config import LayoutSpec, RunConfig
from jala_ray.data.manifest.table import Manifest, write_manifest
from jala_ray.data.samples.assets import Assets
from jala_ray.data.samples.collate import Laid
from jala_ray.data.sampling.plan import PlanRow
from jala_ray.presets import PRESETS
from jala_ray.types import HandState, TaskType
from jala_ray.video.frames import boundary_times
from tests.data.test_source import make_clip
from tests.support import A, Kind, L, MemorySource, U, lay_out, make_assets, small

EPOCHS = 6
"""Draws of each sample that a test looks at."""


@functools.cache
def config_of(preset: str) -> tuple[RunConfig, Assets]:
    config = small(PRESETS[preset], data__labels="all")
    return config, make_assets(config)


def laid(kind: Kind, preset: str = "tiny", epoch: int = 0) -> Laid:
    config, assets = config_of(preset)
    return lay_out(config, assets, [kind], epoch)[0]


def draws(kind: Kind, preset: str = "tiny") -> list[Laid]:
    return [laid(kind, preset, epoch) for epoch in range(EPOCHS)]


def truth(kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """Labelled (2, N) and codes (2, N, K) of row 0, which every draw lays out."""
    (example,) = MemorySource([kind], config_of("tiny")[1]).samples([PlanRow(0, 0, 0)])
    return example.labelled, example.codes  # type: ignore[union-attr]


def chunks_of(sequence: Laid) -> list[tuple[int, np.ndarray]]:
    """(hand, positions of the K codes) of every chunk, in order; checks `<mot>` and `</mot>` around it."""
    vocab, c = config_of("tiny")[1].spec.vocab, sequence.columns
    found = []
    for start in np.flatnonzero(c["ids"] == vocab.mot_open):
        end = start + vocab.chunk_tokens + 1
        assert c["ids"][end] == vocab.mot_close
        assert len(set(c["hand"][start : end + 1])) == 1
        found.append((int(c["hand"][start]), np.arange(start + 1, end)))
    return found


def turns(sequence: Laid) -> tuple[slice, slice]:
    """Positions of the user turn and of the assistant turn, after its header and with its closing."""
    text = config_of("tiny")[1].text
    close = text.user_close_assistant_open()
    ids = sequence.columns["ids"].tolist()
    (at,) = [i for i in range(len(ids)) if ids[i : i + len(close)] == close]
    return slice(0, at), slice(at + len(close), len(ids))


def inside(positions: np.ndarray, turn: slice) -> bool:
    return bool(turn.start <= positions[0] and positions[-1] < turn.stop)


TWO: dict[str, Kind] = {
    "generation": Kind("generation", (L, L), 3),
    "continuation": Kind("continuation", (L, L), 3),
    "description": Kind("description", (L, L), 3),
    "pure_video": Kind("pure_video", (U, U), 3),
    "mixed": Kind("generation", (L, U), 3, ((0, 1),)),
}


@pytest.mark.parametrize("name", TWO)
def test_chunks_interleave_along_time(name: str) -> None:
    """L1 R1 L2 R2 ..., each with the codes of its hand and time, or [MASK]."""
    vocab = config_of("tiny")[1].spec.vocab
    labelled, codes = truth(TWO[name])
    for sequence in draws(TWO[name]):
        chunks = chunks_of(sequence)
        assert [hand for hand, _ in chunks] == [0, 1] * 3
        for i, (hand, at) in enumerate(chunks):
            ids, time = sequence.columns["ids"][at], i // 2
            if labelled[hand, time]:
                assert np.all((ids == vocab.mask) | (ids == vocab.text + codes[hand, time]))
            else:
                assert np.all(ids == vocab.mask)


@pytest.mark.parametrize("task", ["generation", "continuation", "description"])
@pytest.mark.parametrize("hand", [0, 1])
def test_an_absent_hand_has_no_chunks(task: TaskType, hand: int) -> None:
    states: tuple[HandState, HandState] = (L, A) if hand == 0 else (A, L)
    for sequence in draws(Kind(task, states, 3)):
        assert [h for h, _ in chunks_of(sequence)] == [hand] * 3
        assert set(sequence.columns["hand"]) == {-1, hand}


@pytest.mark.parametrize("name", TWO)
def test_a_chunk_is_one_block_of_k_and_two(name: str) -> None:
    vocab = config_of("tiny")[1].spec.vocab
    for sequence in draws(TWO[name]):
        c, chunks = sequence.columns, chunks_of(sequence)
        outside = np.ones(len(sequence), bool)
        blocks = []
        for hand, at in chunks:
            whole = np.arange(at[0] - 1, at[-1] + 2)
            outside[whole] = False
            (block,) = set(c["block"][whole])
            blocks.append(block)
            assert block >= 0 and np.all(c["hand"][whole] == hand)
            assert c["k"][whole].tolist() == [-1, *range(vocab.chunk_tokens), -1]
        assert len(set(blocks)) == len(chunks), "no two chunks share a block"
        for column in ("block", "hand", "k"):
            assert np.all(c[column][outside] == -1), column


@pytest.mark.parametrize("name", TWO)
def test_only_codes_are_masked_scored_and_aligned(name: str) -> None:
    vocab = config_of("tiny")[1].spec.vocab
    seen = {"scored": 0, "pair": 0}
    for sequence in draws(TWO[name]):
        c = sequence.columns
        code = c["k"] >= 0
        masked = c["ids"] == vocab.mask
        for flags in (masked, c["scored"] == 1, c["pair"] >= 0, c["target"] >= 0, c["state"] == 1):
            assert not flags[~code].any()
        assert np.array_equal(c["state"] == 1, masked), "LSP latents sit on every [MASK]"
        assert np.all(masked[c["scored"] == 1]) and np.all(c["target"][c["scored"] == 1] >= 0)
        assert np.all(masked[c["pair"] >= 0]), "align.positions = masked"
        seen["scored"] += int(c["scored"].sum())
        seen["pair"] += int((c["pair"] >= 0).sum())
    assert bool(seen["scored"]) == (name not in ("description", "pure_video"))
    assert bool(seen["pair"]) == (name != "description")


def test_targets_are_the_codes_of_the_slot() -> None:
    kind = TWO["generation"]
    _, codes = truth(kind)
    vocab = config_of("tiny")[1].spec.vocab
    for sequence in draws(kind):
        for i, (hand, at) in enumerate(chunks_of(sequence)):
            target = sequence.columns["target"][at]
            assert target.min() >= 0 and target.max() < vocab.codes
            within = np.array(vocab.token_slots) * vocab.codes
            assert np.array_equal(target + within, codes[hand, i // 2])


def test_the_user_turn_of_a_generation_holds_text_and_image_alone() -> None:
    assets = config_of("tiny")[1]
    for name in ("generation", "pure_video", "mixed"):
        for sequence in draws(TWO[name]):
            user, assistant = turns(sequence)
            assert all(inside(at, assistant) for _, at in chunks_of(sequence))
            image = np.flatnonzero(sequence.columns["image_k"] >= 0)
            assert inside(image, user) and np.all(np.diff(image) == 1)
            assert sequence.columns["image_k"][image].tolist() == list(range(assets.spec.image_tokens))
            assert np.all(sequence.columns["ids"][image] == assets.text.img_context)
            ids = sequence.columns["ids"]
            assert ids[image[0] - 1] == assets.text.img_start and ids[image[-1] + 1] == assets.text.img_end


@pytest.mark.parametrize("states", [(L, L), (L, U), (A, L)])
def test_a_continuation_prompts_with_the_first_steps_of_both_hands(states: tuple[HandState, HandState]) -> None:
    """m ~ U{1..N-1} time steps lie before the user's `<|im_end|>`; labelled ones are unmasked and never scored."""
    vocab = config_of("tiny")[1].spec.vocab
    n, hands = 4, sum(state != A for state in states)
    kind = Kind("continuation", states, n)
    _, codes = truth(kind)
    seen = set()
    for epoch in range(24):
        sequence = laid(kind, epoch=epoch)
        user, assistant = turns(sequence)
        chunks = chunks_of(sequence)
        prompt = [inside(at, user) for _, at in chunks]
        m, rest = divmod(sum(prompt), hands)
        assert not rest and prompt == [True] * (m * hands) + [False] * ((n - m) * hands)
        assert all(inside(at, assistant) for _, at in chunks[m * hands :])
        seen.add(m)
        for i, (hand, at) in enumerate(chunks[: m * hands]):
            c = sequence.columns
            assert not c["scored"][at].any()
            if states[hand] == L:
                assert np.array_equal(c["ids"][at], vocab.text + codes[hand, i // hands])
                assert np.all(c["pair"][at] == -1)
            else:
                assert np.all(c["ids"][at] == vocab.mask)
        assert sequence.columns["scored"].any(), "the target lies after the prompt"
    assert seen == {1, 2, 3}


def test_a_description_answers_in_text() -> None:
    """All chunks in the user turn, nothing scored or aligned; each answer token predicts the next, up to `<|im_end|>`."""
    assets = config_of("tiny")[1]
    text, vocab = assets.text, assets.spec.vocab
    for kind in (Kind("description", (L, L), 2), Kind("description", (A, L), 3)):
        _, codes = truth(kind)
        for sequence in draws(kind):
            c, (user, assistant) = sequence.columns, turns(sequence)
            chunks = chunks_of(sequence)
            assert all(inside(at, user) for _, at in chunks)
            hands = sum(state != A for state in kind.states)
            for i, (hand, at) in enumerate(chunks):
                assert np.array_equal(c["ids"][at], vocab.text + codes[hand, i // hands])
            assert not c["scored"].any() and np.all(c["pair"] == -1) and sequence.pairs == []

            words = text.encode("the hand moves the cup")
            assert c["ids"][assistant].tolist() == [*words, *text.assistant_close()]
            predicted = np.flatnonzero(c["text_target"] >= 0)
            assert predicted.tolist() == list(range(assistant.start - 1, assistant.start + len(words)))
            assert np.array_equal(c["text_target"][predicted], c["ids"][predicted + 1])
            assert c["text_target"][predicted].tolist() == [*words, text.im_end]


@pytest.mark.parametrize("name", ["generation", "continuation", "pure_video", "mixed"])
def test_other_tasks_predict_no_text(name: str) -> None:
    for sequence in draws(TWO[name]):
        assert np.all(sequence.columns["text_target"] == -1)
        _, assistant = turns(sequence)
        text = config_of("tiny")[1].text
        assert sequence.columns["ids"][assistant][-2:].tolist() == text.assistant_close()


@pytest.mark.parametrize("states", [(U, U), (A, U)])
def test_pure_video_is_all_mask(states: tuple[HandState, HandState]) -> None:
    vocab = config_of("tiny")[1].spec.vocab
    for sequence in draws(Kind("pure_video", states, 3)):
        c = sequence.columns
        code = c["k"] >= 0
        assert code.sum() == 3 * sum(state == U for state in states) * vocab.chunk_tokens
        assert np.all(c["ids"][code] == vocab.mask)
        assert np.all(c["pair"][code] >= 0) and not c["scored"].any() and np.all(c["target"] == -1)


@pytest.mark.parametrize("name", ["generation", "continuation", "pure_video", "mixed"])
def test_pairs_are_of_the_chunks_own_time(name: str) -> None:
    """`pairs[pair]` is the chunk's time i: it reads v_i and v_{i+1}, which are among the boundaries decoded."""
    for epoch in range(EPOCHS):
        one = laid(TWO[name], epoch=epoch)
        sequence = one
        used = set()
        for i, (_, at) in enumerate(chunks_of(sequence)):
            rows = set(sequence.columns["pair"][at]) - {-1}
            used |= rows
            assert {sequence.pairs[row] for row in rows} <= {i // 2}
        assert used == set(range(len(sequence.pairs))) and len(set(sequence.pairs)) == len(sequence.pairs)
        assert one.boundaries[0] == 0
        assert set(one.boundaries) == {0} | set(sequence.pairs) | {time + 1 for time in sequence.pairs}
        assert list(one.boundaries) == sorted(one.boundaries)
        assert len(one.pictures["frames"]) == len(one.boundaries)
    assert not any(laid(TWO[name], "tiny_no_align").pairs for name in TWO)


def test_next_token_is_causal_over_labelled_chunks_alone() -> None:
    vocab = config_of("tiny_next_token")[1].spec.vocab
    kind = Kind("generation", (L, U), 3, ((0, 1),))
    labelled, codes = truth(kind)
    for sequence in draws(kind, "tiny_next_token"):
        c, chunks = sequence.columns, chunks_of(sequence)
        assert np.all(c["block"] == -1) and not c["state"].any() and np.all(c["pair"] == -1)
        assert not np.any(c["ids"] == vocab.mask)
        assert [hand for hand, _ in chunks] == [0, 0] and labelled.sum() == 2
        for time, (hand, at) in zip((0, 2), chunks, strict=True):
            assert np.array_equal(c["ids"][at], vocab.text + codes[hand, time])
            assert c["scored"][at].all()
    for sequence in draws(TWO["continuation"], "tiny_next_token"):
        user, assistant = turns(sequence)
        prompt = [inside(at, user) for _, at in chunks_of(sequence)]
        scored = [bool(sequence.columns["scored"][at].all()) for _, at in chunks_of(sequence)]
        assert scored == [not before for before in prompt] and any(prompt) and not all(prompt)
        assert not sequence.columns["scored"][user].any() and sequence.columns["scored"][assistant].any()
    assert laid(kind, "tiny_next_token").boundaries == ()


@pytest.mark.parametrize("states", [(L, L), (A, L), (L, U)])
def test_a_state_prefix_has_k_positions_a_present_hand(states: tuple[HandState, HandState]) -> None:
    layout: LayoutSpec = config_of("tiny_next_token_dino")[0].objective.layout
    assert layout.state == "prefix"
    vocab = config_of("tiny")[1].spec.vocab
    for task in ("generation", "continuation"):
        for sequence in draws(Kind(task, states, 3), "tiny_next_token_dino"):
            c, (user, _) = sequence.columns, turns(sequence)
            at = np.flatnonzero(c["state"] == 1)
            present = [hand for hand in (0, 1) if states[hand] != A]
            assert inside(at, user) and at[0] > np.flatnonzero(c["image_k"] >= 0)[-1]
            assert c["hand"][at].tolist() == list(np.repeat(present, vocab.chunk_tokens))
            assert c["k"][at].tolist() == list(range(vocab.chunk_tokens)) * len(present)
            assert np.all(c["ids"][at] == vocab.mask) and np.all(c["block"][at] == -1)
            assert not c["scored"][at].any() and np.all(c["target"][at] == -1)
            assert all(start[0] > at[-1] for _, start in chunks_of(sequence))
    assert laid(Kind("generation", states, 3), "tiny_next_token_dino").boundaries == [0]


def test_boundaries_of_slowed_video_are_half_a_second_apart(tmp_path: Path) -> None:
    """One second of model time is 0.5 s of a wild source and 1 s of a lab one, counted from the clip's start (method.md 1)."""
    lab = make_clip("lab", 3.0, start_s=7.25, end_s=10.25)
    wild = replace(make_clip("wild", 3.0, start_s=7.25, end_s=10.25), domain="wild", time_scale=0.5)
    stored = Manifest(write_manifest([lab, wild], tmp_path / "m.parquet").path)
    for i, (step, chunks) in enumerate(((1.0, 3), (0.5, 6))):
        times = boundary_times(stored.clip(i))
        assert len(times) == chunks + 1 and times[0] == 7.25
        np.testing.assert_allclose([b - a for a, b in itertools.pairwise(times)], step, rtol=0, atol=1e-12)
        assert stored.index["n_chunks"][i].as_py() == chunks
