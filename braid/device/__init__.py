"""What the machine has and what its memory can do."""
