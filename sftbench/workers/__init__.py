"""A run in a process of its own: the client that starts and stops it, and the process."""
