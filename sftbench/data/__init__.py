"""From a file to a batch, in this order: sources, readers, origins, conversations, rows, roles,
chat_template, tokenization, packing."""
