"""Damaged videos and manifests: whatever the bytes, a worker lives on and says what is wrong."""
