"""A stage as a folder that plain transformers, PEFT and servers load."""
