"""Replay of a trace against a server: the plan, its bodies, the senders, what came back, and what it says.

The path of a run: ``plan.py`` turns rows into planned requests (pure: ``choice.py`` takes programs, ``graph.py``,
``weave.py`` and ``rewire.py`` say who waits for whom, ``lengths.py`` how long, ``prompts.py``, ``blocks.py`` and
``shared.py`` of which streams, ``starts.py`` when); ``content.py`` says which words each prompt has (pure);
``target.py`` asks the server what it can do; ``bodies.py`` writes every request's bytes into a folder before
the first is sent (``files.py``); ``run.py`` starts sender processes (``sender.py``), which read that folder and append
``outcome.Outcome`` records; ``measure.py`` and ``report.py`` turn plan and outcomes into numbers, JSON and a page.
``stub.py`` is a server with known times and faults to try all this on.
"""
