"""Backends of these examples, named in recipes by their dotted paths."""
