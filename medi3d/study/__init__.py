"""Controlled comparisons: many runs of one task that differ in one thing, and what they say together."""
