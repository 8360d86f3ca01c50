"""What every page is set from: elements, charts, pictures."""
