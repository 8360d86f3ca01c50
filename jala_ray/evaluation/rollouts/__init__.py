"""Rollouts on real robots: tasks of several subtasks, what people wrote down of each rollout, and its scores."""
