"""The study's text tokenizer.

Trained on the prompts alone, as runs without a pretrained one do, it would spell the instructions letter by letter.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jala_ray.data.manifest.table import Manifest
from jala_ray.data.samples.instructions import all_templates
from jala_ray.models.text import TextTokenizer
from jala_ray.studies.alignment.keeping import learned
from jala_ray.studies.alignment.stages import StudyFolder
from jala_ray.studies.alignment.world import training_clips

LARGEST = 4096


def make_words(study: StudyFolder, world: dict[str, Any]) -> dict[str, Any]:
    """Train it on the prompts and on the instructions of all training clips, as if it were a pretrained one."""
    settings = {"world": world["plan"], "largest": LARGEST}
    return learned(study, study.words, settings, lambda: _make(study))


def _make(study: StudyFolder) -> dict[str, Any]:
    instructions = sorted({text for clip in training_clips(Manifest(study.manifest)) for text in clip.instructions})
    tokenizer = TextTokenizer.train([*all_templates(), *instructions], LARGEST)
    tokenizer.save(study.words)
    lengths = [len(tokenizer.encode(text)) for text in instructions]
    return {"tokens": tokenizer.vocab_size, "tokens_an_instruction": float(np.mean(lengths))}
