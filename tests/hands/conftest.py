"""Real hand data, read safely."""

import numpy as np
import pytest

from jala_ray.hands.unpickle import RestrictedUnpickler


@pytest.fixture(scope="session")
def vitra_episode(shared_data) -> dict:
    """VITRA's example episode: a pickled dictionary inside an npy file."""
    with next((shared_data / "vitra_ego4d").glob("*.npy")).open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        return RestrictedUnpickler(file).load().item()
