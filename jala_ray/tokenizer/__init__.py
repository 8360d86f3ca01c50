"""GRQ-VAE motion tokenizer: hand features <-> motion tokens, its training and quality report (method.md 2)."""
