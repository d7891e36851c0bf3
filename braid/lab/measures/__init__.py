"""A run as numbers: latencies, validity, goodput; and as sentences, figures and one page."""
