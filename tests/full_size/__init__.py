"""The full-size path on a CPU: the exact architectures with random weights, from files to files."""
