"""A cache of a manifest: what it holds, and how it is made and read. Names of `folder.py` are taken from here too."""

from jala_ray.moved import names_of

__getattr__ = names_of(__name__, "folder")
