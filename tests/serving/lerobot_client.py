"""Run beside lerobot, with a port and a folder: its own parts make the policy `jala` and let it act on a batch of two environments."""

# pyright: reportMissingImports=false
from __future__ import annotations

import sys

import numpy as np


def main(port: str, folder: str) -> None:
    from lerobot.configs import PreTrainedConfig
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.envs.utils import preprocess_observation
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    config = PreTrainedConfig.get_choice_class("jala")(server=f"ws://127.0.0.1:{port}", device="cpu")
    config.input_features = {
        "observation.images.image": PolicyFeature(FeatureType.VISUAL, (3, 16, 16)),
        "observation.state": PolicyFeature(FeatureType.STATE, (8,)),
    }
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (7,))}
    policy = get_policy_class("jala")(config=config).to("cpu").eval()
    before, after = make_pre_post_processors(policy_cfg=config)
    policy.reset()
    rng, pictures, states, actions = np.random.default_rng(0), [], [], []
    for _ in range(2 * config.n_action_steps):
        pictures.append(rng.integers(0, 256, (2, 16, 16, 3), np.uint8))
        states.append(rng.normal(size=(2, 8)).astype(np.float32))
        seen = preprocess_observation({"pixels": {"image": pictures[-1]}, "agent_pos": states[-1]})
        actions.append(after(policy.select_action(before(seen | {"task": ["open it", "close it"]}))).numpy())
    np.savez(f"{folder}/acted.npz", pictures=pictures, states=states, actions=actions)


if __name__ == "__main__":
    main(*sys.argv[1:])
