"""Routed experts where a model is larger than its memory: some in slots, the others read as they are needed."""
