"""Verbs that only runV had, or meant its own way."""
