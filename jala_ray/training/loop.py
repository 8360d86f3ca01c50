"""Old names, for programs that were written with them: the loop is `trainer.py`, what it trains `pretraining.py`."""

from jala_ray.training.device import autocast, to_device
from jala_ray.training.pretraining import Meters
from jala_ray.training.pretraining import Pretraining as Run
from jala_ray.training.trainer import restore, run_steps, train

__all__ = ["Meters", "Run", "autocast", "restore", "run_steps", "to_device", "train"]
