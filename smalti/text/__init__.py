"""Text and other bytes: byte pair encoding, equal-information windows, frozen glyphs."""
