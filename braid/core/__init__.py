"""Words shared by every floor. Standard library only."""
