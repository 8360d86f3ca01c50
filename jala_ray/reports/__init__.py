"""Pages: of a run, of an evaluation, of a manifest. Each is one HTML file that needs no network."""
