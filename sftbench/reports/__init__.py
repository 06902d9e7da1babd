"""What a person reads: the ledger, texts, plots, tokens with their mask, progress, comparisons."""
