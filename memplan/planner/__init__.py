"""Budget to plan: which blocks train, how each runs, what is pruned. Knows nothing of torch."""
