"""GRQ-VAE motion tokenizer: hand features <-> discrete motion tokens, its training and its quality report (METHOD 2)."""
