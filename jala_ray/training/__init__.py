"""The training loop, its optimizer, checkpoints and logs. Ray is known to `launch.py` and what it stands on alone (its docstring)."""
