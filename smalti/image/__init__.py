"""Image tokenizers, and the reading, measures and losses of images."""
