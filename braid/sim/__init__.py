"""Virtual-time twin of the runner."""
