"""What can go wrong with a run, done to it for real: one file a subject, docs/reliability.md lists
all.
"""
