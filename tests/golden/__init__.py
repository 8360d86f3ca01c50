"""Does this checkout compute what a named commit computed? See docs/golden.md."""
