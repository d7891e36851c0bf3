"""The store's single writer, the scheduler and the loop. Standard library only."""
