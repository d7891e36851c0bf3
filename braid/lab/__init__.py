"""The workload lab: load traces, characterise, fit, generate, replay, report. Works alone, without torch."""
