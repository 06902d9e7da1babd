"""Find a model, load it safely, make it trainable, find its checkpoints."""
