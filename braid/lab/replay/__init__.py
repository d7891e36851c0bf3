"""Replay of a trace against a server, and what a run leaves on the disk.

The path of a run: ``planning`` turns rows into planned requests and their words; ``asking`` finds out what the server
can do and writes every request's bytes into a folder (``files.py``) before the first is sent; ``run.py`` has
``supervise.py`` start the processes of ``sending``, which append ``outcome.Outcome`` records; ``record.py`` keeps the
run. ``simulated.py`` plays the same plan on a virtual clock. Numbers and pages are made in ``braid.lab.measures``.
"""
