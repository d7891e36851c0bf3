"""Two configurations beside each other: paired, with intervals, and one sentence."""
