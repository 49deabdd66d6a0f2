"""Private engines for the cases: docker, podman, containerd, and its CRI, with every subject as a runtime of theirs."""
