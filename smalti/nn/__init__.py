"""Blocks that encoders, decoders and generators are built from. Knows no quantizer."""
