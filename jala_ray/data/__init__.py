"""Data: manifest, adapters, instructions, epoch plan, collate. `pipeline.py` is the only file here that knows Ray."""
