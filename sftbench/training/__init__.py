"""A recipe made into trained stages: prepare, forecast, the chain, the one training loop, how it ended."""
