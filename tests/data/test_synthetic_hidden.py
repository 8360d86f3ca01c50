"""What a world may be told to hide: targets that no label shows, named by made-up words; and how many looks Lab has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from jala_ray.data.synthetic import (
    COMPOSITION_SETS,
    WorldConfig,
    animate_clip,
    list_compositions,
    make_clip,
    plan_world,
    read_instruction,
    split_compositions,
)
from jala_ray.data.synthetic.grammar import _NONCE, _PLACE, TARGETS, choose_hidden
from jala_ray.data.synthetic.scene import draw_look
from jala_ray.types import ConfigError
from tests.data.test_synthetic import MANY, words

HIDING = replace(MANY, hidden_targets=2, wild_only_share=0.0, held_out_share=0.0)


def test_hidden_targets_are_a_set_of_their_own():
    every = list_compositions()
    hidden = choose_hidden(2, 5)
    sets = split_compositions(every, seed=5, hidden=hidden)
    assert sorted(c for members in sets.values() for c in members) == sorted(every)
    assert len(hidden) == 2 and sets["hidden"] == [c for c in every if c.target in hidden]
    cells = {name: {(c.verb, c.target) for c in sets[name]} for name in COMPOSITION_SETS}
    assert len(cells["wild_only"]) == len(cells["held_out"]) == round(0.2 * 30)
    assert {c.target for c in sets["seen"]} == set(TARGETS) - hidden
    whole = split_compositions(every, wild_only_share=0, held_out_share=0, hidden=hidden)
    assert not whole["wild_only"] and not whole["held_out"] and len(whole["seen"]) == 3 / 5 * len(every)
    assert len({choose_hidden(2, seed) for seed in range(50)}) == 10
    assert choose_hidden(1, 7) < choose_hidden(2, 7) and not choose_hidden(0, 7)
    with pytest.raises(ConfigError, match="hidden_targets: got 5, expected 0 to 4"):
        WorldConfig(hidden_targets=5)


def test_no_label_shows_a_hidden_target():
    plans = plan_world(replace(HIDING, labelled_share=0.25))
    at_hidden = [p for p in plans if p.composition.target in HIDING.hidden]
    assert {p.composition_set for p in at_hidden} == {"hidden"}
    assert {(p.domain, p.split, p.labelled) for p in at_hidden} == {("wild", "train", False), ("wild", "val", True)}
    assert {p.composition.target for p in at_hidden} == HIDING.hidden
    assert sum(p.split == "val" for p in at_hidden) == 6  # of 12: the sets take turns
    assert {p.composition_set for p in plans} == {"seen", "hidden"}
    assert sum(p.labelled for p in plans if (p.domain, p.split) == ("wild", "train")) == 10
    assert all(p.labelled for p in plan_world(replace(HIDING, labelled_share=1.0)))  # the ceiling
    with pytest.raises(ConfigError, match=r"labelled_share: got 0\.9, expected at most the 0\."):
        plan_world(replace(HIDING, labelled_share=0.9))


def test_made_up_words_name_a_hidden_target_and_no_other():
    named = {"seen": set(), "hidden": set()}
    for plan in plan_world(replace(HIDING, labelled_share=1.0)):
        clip = make_clip(HIDING, plan, "clip.mp4")
        assert all(read_instruction(text) == plan.composition for text in clip.instructions)
        place = _NONCE if plan.composition_set == "hidden" else _PLACE
        for text in (*clip.instructions, clip.description):
            assert sum(phrase in text for phrase in place[plan.composition.target]) == 1
            named[plan.composition_set] |= words(text)
    made_up = {word for phrases in _NONCE.values() for p in phrases for word in words(p)} - {"by", "at", "the"}
    assert len(made_up) == 10 and not made_up & named["seen"] and len(made_up & named["hidden"]) == 4


def test_lab_may_have_several_looks():
    several = replace(MANY, lab_train=12, lab_val=4, wild_train=4, wild_val=0, lab_looks=3)
    seeds, tables = set(), set()
    for plan in plan_world(several):
        one, shared = (animate_clip(config, plan) for config in (replace(several, lab_looks=1), several))
        assert all(np.array_equal(m.wrist, shared.hands[side].wrist) for side, m in one.hands.items())
        assert (
            np.array_equal(one.world_to_camera, shared.world_to_camera)
            and one.objects[0].name == shared.objects[0].name
        )
        seed = tuple(shared.look_seed.generate_state(4))
        look = draw_look(plan.domain, np.random.default_rng(shared.look_seed), shared.plain)
        if shared.plain:
            assert seed == tuple(one.look_seed.generate_state(4))
        else:
            seeds.add(seed)
            tables.add(look.table.tobytes())
            assert plan.domain == "lab" and look.flicker[0] == 0 and np.ptp(look.table, axis=(0, 1)).max() > 0.02
    assert len(seeds) == len(tables) == 2  # and the plain one
    with pytest.raises(ConfigError, match="lab_looks"):
        replace(MANY, lab_looks=0)
