"""Tests of the host's kernel interfaces: real namespaces, mounts, taps and cgroups; root, no machine."""
