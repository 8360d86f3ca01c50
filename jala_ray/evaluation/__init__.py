"""What a run was worth: the run report (and, beside it, metrics and plots of decoded motion)."""
