"""Measurements while a run trains, a file per kind (`config/evaluators.py` says what one declares). A file that is added is an evaluator
that `train.evaluate` may name."""
