"""From a file to a batch, in this order: sources, readers, conversations, roles, chat template, tokens,
packing."""
