"""Pretrain a VLA: `ray job submit -- python jobs/pretrain.py PRESET --dotted.key value`.

Continues the run folder if it holds a checkpoint. `PRESET --help` lists every setting.
"""

from __future__ import annotations

import sys

from jala_ray.presets import configuration
from jala_ray.training import setup
from jala_ray.training.launch import launch
from jala_ray.types import JalaError


def main(argv: list[str]) -> None:
    config = configuration(argv)
    launch(config)
    from jala_ray.evaluation.publish import publish_pretrain_report  # plots are needed only now

    folder = setup.run_folder(config)
    options = setup.storage_options(config)
    print(f"report: {publish_pretrain_report(folder, config.data.manifest or None, options)}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except JalaError as error:
        sys.exit(f"error: {error}")
