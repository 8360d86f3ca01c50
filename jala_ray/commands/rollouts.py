"""Write the form for rollouts on a real robot, or score forms that were filled in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import FlagConversionOff, Positional, arg

from jala_ray.storage import StorageOptions
from jala_ray.types import ConfigError


@dataclass(frozen=True)
class Arguments:
    """Score a policy on a real robot as the papers do: tasks of several subtasks, rollouts as demonstrated and unseen, completion ratio.

    form OUT.html writes a page that is filled in by a browser, offline, and saved as JSON; score FORM.json ... reads such forms, one a
    policy, and writes scores.json, table.md and report.html; tasks OUT.json writes the papers' tasks, to be changed into yours.
    """

    action: Positional[Literal["form", "score", "tasks"]]
    """What is done."""
    files: Positional[Annotated[tuple[str, ...], arg(metavar="FILE ...")]]
    """The file that is written; to score: forms, local or s3://."""
    tasks: str | None = None
    """JSON file of the form's tasks; None: the papers' three."""
    policy: str = ""
    """Name of the policy, filled in already in the form."""
    out: str | None = None
    """Folder of the scores, local or s3://; None: that of the first form, with _scores for .json."""
    storage: FlagConversionOff[StorageOptions] = field(default_factory=StorageOptions)


def run(arguments: Arguments) -> int:
    if not arguments.files or (arguments.action != "score" and len(arguments.files) > 1):
        expected = "one or more forms" if arguments.action == "score" else "one file, which is written"
        raise ConfigError("file", arguments.files, expected)
    if arguments.action == "score":
        return _score(arguments)
    from jala_ray import storage
    from jala_ray.evaluation.rollouts.forms import paper_tasks, read_tasks

    if arguments.action == "tasks":
        text = paper_tasks()
    else:
        from jala_ray.reports.rollouts.form import form_page

        text = form_page(read_tasks(arguments.tasks, arguments.storage), arguments.policy)
    file = next(iter(arguments.files))
    place = storage.absolute(file)
    storage.write_bytes(place, text.encode(), options=arguments.storage)
    print(place)
    return 0


def _score(arguments: Arguments) -> int:
    from jala_ray import storage
    from jala_ray.evaluation.rollouts.forms import read_form
    from jala_ray.evaluation.rollouts.scores import score
    from jala_ray.reports.rollouts.page import percent, publish, rollout_findings

    scores = score([read_form(place, arguments.storage) for place in arguments.files])
    out = arguments.out or arguments.files[0].removesuffix(".json") + "_scores"
    print(publish(scores, storage.absolute(out), arguments.storage))
    for name, own in scores["policies"].items():
        print(f"{name}: completion {percent(own['overall'])}, {own['rollouts']} rollouts")
    for finding in rollout_findings(scores):
        print(finding.line)
    return 0
