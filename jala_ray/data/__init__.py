"""Data: manifests, epochs, samples, caches, preparation. `pipeline.py` is the only file here that knows Ray."""
