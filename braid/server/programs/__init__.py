"""Which program a request belongs to, what its client wishes for its KV, and what is known of each program."""
