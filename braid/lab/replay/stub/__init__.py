"""A server that computes nothing, with known times and faults."""
