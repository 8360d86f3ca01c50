"""`jala rollouts form`, `tasks` and `score`: a real robot, and people who watch it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import FlagConversionOff, Positional, arg

from jala_ray.storage import StorageOptions
from jala_ray.types import ConfigError


def _written(files: tuple[str, ...], text: str, options: StorageOptions) -> int:
    if len(files) != 1:
        raise ConfigError("file", files, "one file, which is written")
    from jala_ray import storage

    place = storage.absolute(files[0])
    storage.write_bytes(place, text.encode(), options=options)
    print(place)
    return 0


@dataclass(frozen=True)
class FormAction:
    """Write the form for rollouts on a real robot: a page that is filled in by a browser, offline, and saved as JSON."""

    files: Positional[Annotated[tuple[str, ...], arg(metavar="OUT.html")]]
    """The page that is written, local or s3://."""
    tasks: str | None = None
    """JSON file of the form's tasks; None: the papers' three."""
    policy: str = ""
    """Name of the policy, filled in already in the form."""
    storage: FlagConversionOff[StorageOptions] = field(default_factory=StorageOptions)

    def run(self) -> int:
        from jala_ray.evaluation.rollouts.forms import read_tasks
        from jala_ray.reports.rollouts.form import form_page

        return _written(self.files, form_page(read_tasks(self.tasks, self.storage), self.policy), self.storage)


@dataclass(frozen=True)
class TasksAction:
    """Write the papers' tasks, to be changed into yours."""

    files: Positional[Annotated[tuple[str, ...], arg(metavar="OUT.json")]]
    """The file that is written, local or s3://."""
    storage: FlagConversionOff[StorageOptions] = field(default_factory=StorageOptions)

    def run(self) -> int:
        from jala_ray.evaluation.rollouts.forms import paper_tasks

        return _written(self.files, paper_tasks(), self.storage)


@dataclass(frozen=True)
class ScoreAction:
    """Score forms that were filled in, one a policy, as the papers do: completion ratio, success, subtasks, failures."""

    files: Positional[Annotated[tuple[str, ...], arg(metavar="FORM.json ...")]]
    """Forms, local or s3://; those of a simulator's rollouts too."""
    out: str | None = None
    """Folder of scores.json, table.md and report.html, local or s3://; None: that of the first form, with _scores for .json."""
    storage: FlagConversionOff[StorageOptions] = field(default_factory=StorageOptions)

    def run(self) -> int:
        if not self.files:
            raise ConfigError("file", self.files, "one or more forms")
        from jala_ray import storage
        from jala_ray.evaluation.rollouts.forms import read_form
        from jala_ray.evaluation.rollouts.scores import score
        from jala_ray.reports.rollouts.page import percent, publish, rollout_findings

        scores = score([read_form(place, self.storage) for place in self.files])
        out = self.out or self.files[0].removesuffix(".json") + "_scores"
        print(publish(scores, storage.absolute(out), self.storage))
        for name, own in scores["policies"].items():
            print(f"{name}: completion {percent(own['overall'])}, {own['rollouts']} rollouts")
        for finding in rollout_findings(scores):
            print(finding.line)
        return 0
