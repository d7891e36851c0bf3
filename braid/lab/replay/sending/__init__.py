"""Sender processes: what is due is sent, what comes back is written down."""
