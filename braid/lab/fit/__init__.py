"""Fitting: from a trace to a profile that can be generated from. ``trace.fit_trace`` is the way in."""
