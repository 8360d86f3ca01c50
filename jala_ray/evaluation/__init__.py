"""What a checkpoint is worth: predictions of held-out clips, their scores, and what its latent space knows."""
