"""Train the motion tokenizer: `ray job submit -- python jobs/train_tokenizer.py PRESET --manifests A.parquet B.parquet`.

Continues the run folder if it holds a checkpoint. `PRESET --help` lists every setting.
"""

from __future__ import annotations

import sys

from jala_ray.presets import tokenizer_configuration
from jala_ray.training import setup
from jala_ray.training.launch import launch_tokenizer
from jala_ray.types import JalaError


def main(argv: list[str]) -> None:
    config = tokenizer_configuration(argv)
    launch_tokenizer(config)
    from jala_ray.evaluation.publish import publish_tokenizer_report  # plots are needed only now

    folder, options = setup.run_folder(config), setup.storage_options(config)
    print(f"report: {publish_tokenizer_report(folder, config.manifests[0], options)}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except JalaError as error:
        sys.exit(f"error: {error}")
