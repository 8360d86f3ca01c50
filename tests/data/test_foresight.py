"""What is said of a run's rows before its first step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jala_ray.config import DataConfig
from jala_ray.data.manifest.table import Manifest, write_manifest
from jala_ray.data.samples.chunks import rows_with_labels
from jala_ray.data.samples.foresight import SAMPLED, foresee
from jala_ray.data.samples.source import BadRow, Look, Pictures, Sample
from jala_ray.data.sampling.catalogue import catalogue
from jala_ray.types import ManifestError, UserError
from tests.data.manifest_clips import make_clip
from tests.support import MIXED, MemorySource, make_assets, make_builder, small

ROWS = 1000


@dataclass
class Wordy(MemorySource):
    """Of every `one_in` rows, the first has a long caption."""

    one_in: int = 1

    def _sample(self, row: int) -> Sample | BadRow:
        sample = super()._sample(row)
        if isinstance(sample, BadRow) or row % self.one_in:
            return sample
        long = "the person turns the blue cup over the sink " * 70
        return replace(sample, instructions=(long,), description=long)

    def pictures(self, looks: list[Look]) -> Pictures:
        raise AssertionError("no picture is needed")


def foreseen(one_in: int, rows: int = ROWS, bad: frozenset[int] = frozenset(), **settings: object) -> str:
    config = small(**settings)
    source = Wordy(MIXED, make_assets(config), bad, one_in)
    return foresee(make_builder(config, source, rows))


def test_rows_that_will_be_too_long_are_counted() -> None:
    assert foreseen(ROWS + 1, bad=frozenset(), data__max_tokens=1024) == foreseen(ROWS + 1) == ""
    said = foreseen(20)
    assert f"of {SAMPLED} sampled rows would be set aside (" in said and "for tokens)" in said
    count = int(said.split()[1])
    assert (
        0 < count < 20 and "expected <= data.max_tokens = 1024. Its text takes" in said and "shorten the text" in said
    )
    assert said == foreseen(20)  # the same rows whenever it is asked
    assert foreseen(20, data__max_tokens=8192) == ""


def test_a_run_that_would_stop_is_refused_before_it_begins() -> None:
    """15 % of the rows, as in a set whose captions were written by a model; 10 % may be set aside."""
    with pytest.raises(
        UserError, match=r"sampled rows would be set aside .*data\.max_error_share = 10\.0%.*data\.max_tokens"
    ):
        foreseen(4)
    assert foreseen(10).startswith("warning: ")  # by chance a sample may lie above what all rows have
    assert foreseen(4, data__max_error_share=0.5).startswith("warning: ")
    with pytest.raises(UserError, match="3 of 20 sampled rows"):  # all there are: no chance
        foreseen(7, rows=20, data__min_rows_for_share=20)


def test_rows_that_cannot_be_read_count_too() -> None:
    said = foreseen(ROWS + 1, bad=frozenset(range(0, ROWS, 25)))
    assert "for video)" in said and "a readable video" in said


def test_motion_that_is_too_long_is_told_from_text() -> None:
    with pytest.raises(UserError, match="cut shorter clips"):
        foreseen(ROWS + 1, data__max_tokens=100)


@pytest.mark.parametrize("name, value", [("split", "train"), ("time_scale", 1.0), ("task_type", "continuation")])
def test_a_run_refuses_a_parquet_file_that_was_changed_without_its_rows(
    name: str, value: object, tmp_path: Path
) -> None:
    clips = [make_clip(str(i), 1.5, split="train" if name != "split" else "val") for i in range(5)]
    path = Path(write_manifest(clips, tmp_path / "m.parquet").path)
    table = pq.read_table(path)
    column = pa.array([value] * len(table), table.schema.field(name).type)
    pq.write_table(table.set_column(table.schema.get_field_index(name), table.schema.field(name), column), path)
    for planned in (
        lambda: catalogue(Manifest(path), DataConfig(manifest=str(path)), "train"),
        lambda: rows_with_labels((str(path),), "train", 100, 0),
    ):
        with pytest.raises(
            ManifestError, match=f"{name} of the row: got .* as in the Parquet file.* write the manifest again"
        ):
            planned()
