"""Verbs that only Clear had, or spelled its own way."""
