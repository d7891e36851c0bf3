"""What is decided about experts: which stay in fast memory, which are fetched early, and who computes them."""
