"""Measures on the user's own model and data what is otherwise advised by rule."""
