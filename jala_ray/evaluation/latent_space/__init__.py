"""What h and z know of the motion."""
