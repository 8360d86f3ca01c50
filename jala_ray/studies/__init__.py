"""Studies: questions about the method, asked by many runs."""
