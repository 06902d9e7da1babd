"""From a file to a batch, in this order: sources, readers, conversations, rows, roles, chat_template,
tokenization, packing."""
