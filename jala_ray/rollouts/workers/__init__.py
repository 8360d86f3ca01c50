"""What runs in a simulator's own environment, started by its path: these files import numpy, the standard library and one another.

`main.py FILE SETTINGS` loads the class `Simulator` of FILE, which fulfils `contract.py`, and answers messages (`wire.py`) on its standard
input until that ends.
"""
