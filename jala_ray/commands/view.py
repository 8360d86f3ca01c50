"""Write a recording for Rerun's viewer: episodes, clips with hands, predictions beside truth, rollouts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import FlagConversionOff, Positional, arg

from jala_ray.storage import StorageOptions


@dataclass(frozen=True)
class Arguments:
    """Write a Rerun recording (.rrd) of what is at an address: a LeRobot data set's episodes with all cameras and signals, a manifest's
    clips with hands in space and in the picture, an open-loop comparison's predictions beside truth, or rollouts with films and actions.

    The HTML pages need no viewer; this needs the extra `view`, and `rerun FILE` to look at it.
    """

    what: Positional[Annotated[str, arg(metavar="WHAT")]]
    """Folder of a LeRobot data set, a manifest, the folder of `jala openloop`, local or s3://; or the local one of `jala rollouts run`."""
    out: str | None = None
    """The recording (.rrd), local; None: NAME.rrd in the working folder."""
    most: int = 4
    """Episodes, clips or rollouts, evenly spread; of rollouts those with films first."""
    numbers: tuple[int, ...] = ()
    """Those alone: LeRobot's numbers of episodes, rows of a manifest, numbers of rollouts."""
    height: int = 240
    """px of pictures, at most."""
    pictures_hz: float = 10.0
    """Pictures a second, at most; numbers are shown at all of their moments."""
    storage: FlagConversionOff[StorageOptions] = field(default_factory=StorageOptions)


def run(arguments: Arguments) -> int:
    from jala_ray import storage
    from jala_ray.reports.view.recording import Wanted
    from jala_ray.reports.view.write import write_view

    given = arguments
    wanted = Wanted(given.most, given.numbers, given.height, given.pictures_hz)
    path, kind = write_view(storage.absolute(given.what), given.out, wanted, given.storage)
    print(f"{path}: {kind}; rerun {path} shows it")
    return 0
