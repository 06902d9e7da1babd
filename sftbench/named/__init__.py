"""What a recipe can name without a file: models that are known by a word."""
