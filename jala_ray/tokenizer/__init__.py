"""GRQ-VAE motion tokenizer: hand features <-> motion tokens, its training and quality report (METHOD 2)."""
