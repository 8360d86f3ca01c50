"""From a checkpoint to motion, and from motion to words: prompts, decoding with a key-value cache, ensembles (method.md 7)."""

from jala_ray.generation.generator import Generator, generate
from jala_ray.generation.motion import Motion
from jala_ray.generation.prompt import Prompt
from jala_ray.generation.text import Said

__all__ = ["Generator", "Motion", "Prompt", "Said", "generate"]
