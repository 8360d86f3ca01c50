"""The page of an open-loop comparison."""
