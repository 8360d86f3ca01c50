"""The page that shows a manifest before anything is trained on it."""
