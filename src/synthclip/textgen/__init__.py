"""The first third: concepts, captions, matching, balancing."""

BANK = "00000"
"""The one shard of the concept bank."""
