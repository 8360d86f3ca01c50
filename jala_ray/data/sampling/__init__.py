"""Which rows an epoch holds, in which order, and every random choice of a sample."""
