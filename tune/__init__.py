"""`sweep.py`, for `ray job submit`; the rest of it is jala_ray.sweeps."""

import jala_ray  # noqa: F401 - knows the old names
