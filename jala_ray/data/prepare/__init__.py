"""Raw videos become training clips. Names of `job.py` are taken from here too."""

from jala_ray.moved import names_of

__getattr__ = names_of(__name__, "job")
