"""From a checkpoint to motion: prompts, chunk-wise decoding with a key-value cache, ensembles (METHOD 7)."""

from jala_ray.generation.generator import Generator, generate
from jala_ray.generation.motion import Motion
from jala_ray.generation.prompt import Prompt

__all__ = ["Generator", "Motion", "Prompt", "generate"]
