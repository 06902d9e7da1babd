"""What to train, and why: the recipe, the modes, advised values, rules. Standard library only."""
