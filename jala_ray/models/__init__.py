"""Models: backbone, text tokenizer, frozen encoders, perceivers, masks, and the VLA that joins them."""
