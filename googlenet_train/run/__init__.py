"""A run: its folder, its sources, its state, and what it does between steps."""
