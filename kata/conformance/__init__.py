"""``kata conformance``: the same cases against each flavor and other OCI runtimes, and what differs."""
