"""Helpers of the suites: the runtime under test, bundles, engines, leak checks.

Everything here looks at a runtime from the outside, as an engine does: command
lines, file descriptors, processes, mounts.  Nothing imports the runtime's code.
"""
