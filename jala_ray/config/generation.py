"""How motion is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from jala_ray.types import ConfigError


@dataclass(frozen=True)
class GenerationConfig:
    """How motion is decoded."""

    passes: int = 20
    """Forward passes per chunk of masked prediction; next-token prediction takes K whatever stands here."""
    ensemble: int = 4
    """E: decodes of each chunk whose motions are averaged; 1 is one greedy decode."""
    temperature: float = 1.0
    """Of the Gumbel noise that tells the decodes of an ensemble apart."""
    seed: int = 0
    """Of the noise."""

    def __post_init__(self) -> None:
        for name in ("passes", "ensemble"):
            if getattr(self, name) < 1:
                raise ConfigError(f"generation.{name}", getattr(self, name), "an integer >= 1")
        if not self.temperature > 0:
            raise ConfigError("generation.temperature", self.temperature, "a number > 0", "For greedy take ensemble 1.")
