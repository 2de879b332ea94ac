"""Judging CLIP models: zero-shot classification, retrieval, linear probe and few-shot, each with its
uncertainty and the level that guessing reaches. Nothing here trains a CLIP.
"""
