"""Ablations: many runs of one recipe that share what they can, and what their differences teach."""
