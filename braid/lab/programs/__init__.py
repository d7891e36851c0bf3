"""Programs of traces, for simulations."""
