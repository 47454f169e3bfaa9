"""memplan: what one training step of a PyTorch model needs in memory, layer by layer, before it is run."""
