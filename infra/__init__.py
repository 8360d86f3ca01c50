"""Clusters, image and runtime environment."""
