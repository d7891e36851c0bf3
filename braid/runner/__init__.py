"""The real executor: plans to tensors to tokens."""
