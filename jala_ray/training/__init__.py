"""The training loop, its optimizer, checkpoints and logs. `launch.py` is the only file here that knows Ray."""
