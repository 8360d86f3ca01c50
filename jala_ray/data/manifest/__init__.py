"""The manifest: its rows, its rules, its files. Names of `table.py` are taken from here too."""

from jala_ray.moved import names_of

__getattr__ = names_of(__name__, "table")
