"""Policies judged in simulators. Each simulator runs in processes and a Python environment of its own: nothing of it enters ours."""
