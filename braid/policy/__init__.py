"""Decisions as pure functions of their arguments: no clock, no randomness of their own."""
