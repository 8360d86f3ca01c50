"""MANO <-> features <-> joints, rotations, cameras, resampling by time, fitting. Torch and numpy only."""
