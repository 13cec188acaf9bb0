"""What a run will cost, before it starts: memory by kind, network passes and arithmetic of one training step."""
