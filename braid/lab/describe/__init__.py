"""What a trace looks like: small pure statistics, and ``describe`` that puts them together."""
