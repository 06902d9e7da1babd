"""What a model knows: probes, the yardstick, standard benchmarks, and talking to it."""
