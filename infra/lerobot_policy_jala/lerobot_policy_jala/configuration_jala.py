"""Settings of the policy `jala`: `--policy.type=jala --policy.server=ws://HOST:8000`."""
# pyright: reportMissingImports=false

from __future__ import annotations

from dataclasses import dataclass, field

from lerobot.configs import NormalizationMode, PreTrainedConfig


@PreTrainedConfig.register_subclass("jala")
@dataclass
class JalaConfig(PreTrainedConfig):
    server: str = "ws://127.0.0.1:8000"
    token_file: str = ""
    n_action_steps: int = 8
    """Of a chunk, executed before the server is asked again."""
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)
    )
    """The server normalises, by what its checkpoint has learned from."""

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> None:
        return None

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self):
        raise NotImplementedError("a served policy is trained by jala_ray")

    def get_scheduler_preset(self) -> None:
        return None

    def validate_features(self) -> None:
        pass
