"""Shared building blocks of all model families."""
