"""Training recipes of the weights that ship."""
