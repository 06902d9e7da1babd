"""A run on disk: its folder, events, stages, checkpoints, and which process owns it. No torch."""
