"""A policy's actions beside recorded ones, moment by moment, without a robot: what it knows, and what it does not look at."""
