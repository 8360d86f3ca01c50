"""Judge a policy by rollouts: in a simulator, or on a real robot by a form that people fill in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Protocol, TypeVar

from tyro.conf import arg

from jala_ray.commands.rollout_forms import FormAction, ScoreAction, TasksAction
from jala_ray.commands.rollout_runs import RecordAction, RunAction, SetupAction
from jala_ray.parsing import arguments, suggest
from jala_ray.types import ConfigError


class RolloutAction(Protocol):
    """A dataclass of the action's arguments; light to import."""

    def run(self) -> int: ...


R = TypeVar("R", bound=RolloutAction)
ACTIONS: dict[str, type[RolloutAction]] = {
    "setup": SetupAction,
    "run": RunAction,
    "record": RecordAction,
    "form": FormAction,
    "score": ScoreAction,
    "tasks": TasksAction,
}


@dataclass(frozen=True)
class Arguments(Generic[R]):
    """Judge a policy by rollouts."""

    action: Annotated[R, arg(name="")]

    @property
    def storage(self) -> Any:
        return getattr(self.action, "storage", None)


def parse(words: Sequence[str], prog: str) -> Arguments[Any]:
    if not words or words[0] in ("-h", "--help"):
        print(usage(prog))
        raise SystemExit(0)
    name, *rest = words
    if name not in ACTIONS:
        raise ConfigError("action", name, f"first one of {', '.join(ACTIONS)}", suggest(name, ACTIONS))
    return Arguments(arguments(ACTIONS[name], rest, f"{prog} {name}"))


def usage(prog: str) -> str:
    width = max(map(len, ACTIONS))
    lines = [f"  {name:{width}}  {(kind.__doc__ or '').partition(chr(10))[0]}" for name, kind in ACTIONS.items()]
    about = [(Arguments.__doc__ or ""), "", "actions:", *lines, "", f"{prog} ACTION --help lists the options of one."]
    return "\n".join([f"usage: {prog} ACTION ...", "", *about])


def run(arguments: Arguments[Any]) -> int:
    return arguments.action.run()
