"""What users call: each command of the shell, above all rooms."""
