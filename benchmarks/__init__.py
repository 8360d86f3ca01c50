"""Speed, each with its baseline in the same run. `benchmarks/NAME.py` prints a table and, last, one JSON object."""
