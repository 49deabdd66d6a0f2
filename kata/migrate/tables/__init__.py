"""The classification of keys, as data: a module for each language and direction."""
