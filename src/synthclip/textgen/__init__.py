"""The first third: concepts, captions, matching, balancing."""
