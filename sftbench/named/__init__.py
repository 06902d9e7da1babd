"""What a recipe can name without a file: known models, the libraries' handbook, a model's own answers."""
