"""Routed experts in virtual time: recorded routing, caches replayed, and the timeline of a step."""
