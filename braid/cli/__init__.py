"""The ``braid`` command: one thin module per verb. Starting it imports neither torch nor the HTTP stack."""

from braid.cli.app import main

__all__ = ["main"]
