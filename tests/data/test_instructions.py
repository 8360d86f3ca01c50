"""Templates: number, variety, placeholders, rendering."""

import string

import pytest

from jala_ray.data.samples.instructions import all_templates, render
from jala_ray.tasks import TASKS
from jala_ray.types import Hand, UserError

PAPERS = ("generation", "continuation", "description", "pure_video")


def _placeholders(template):
    return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]


def test_twenty_templates_each_all_distinct():
    assert tuple(TASKS)[:4] == PAPERS
    assert all(len(TASKS[name].templates) == 20 for name in PAPERS)
    every = [template for name in PAPERS for template in TASKS[name].templates]
    assert all_templates()[:80] == every
    assert len({"".join(c for c in text.lower() if c.isalpha()) for text in every}) == 80


@pytest.mark.parametrize("task_type", TASKS)
def test_placeholders(task_type):
    for template in TASKS[task_type].templates:
        names = _placeholders(template)
        assert set(names) <= {"instruction", "seconds", "hands"}, template
        assert names.count("instruction") == TASKS[task_type].instructed, template


def test_every_template_renders_to_a_clean_sentence():
    for task_type in PAPERS:
        texts = {
            render(task_type, i, instruction=" Lift the cup. ", seconds=3, hands=[Hand.LEFT, Hand.RIGHT])
            for i in range(20)
        }
        assert len(texts) == 20
        for text in texts:
            assert "{" not in text and ".." not in text and "  " not in text
            assert text[0].isupper() and text[-1] in ".?"
            assert ("Lift the cup" in text) == (task_type != "description")


def test_hands_and_seconds_are_spelled_out():
    texts = [render("generation", 1, instruction="Wave", seconds=1, hands=[Hand.RIGHT])]
    texts.append(render("generation", 1, instruction="Wave", seconds=2, hands=[Hand.RIGHT, Hand.LEFT]))
    assert "the right hand" in texts[0] and "1 second." in texts[0]
    assert "both hands" in texts[1] and "2 seconds." in texts[1]


def test_description_needs_no_instruction():
    assert render("description", 0, instruction="", seconds=1, hands=[Hand.LEFT])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"task_type": "captioning"}, "task_type"),
        ({"template_index": 20}, "template_index"),
        ({"template_index": -1}, "template_index"),
        ({"instruction": " . "}, "instruction"),
        ({"hands": []}, "hands"),
    ],
)
def test_bad_input_is_named(change, field):
    good = {
        "task_type": "generation",
        "template_index": 0,
        "instruction": "Wave",
        "seconds": 1,
        "hands": [Hand.LEFT],
    }
    with pytest.raises(UserError) as caught:
        render(**(good | change))
    assert caught.value.field == field
