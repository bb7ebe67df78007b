"""Training: recipes, objectives, the loop."""
