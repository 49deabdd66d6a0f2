"""The agent: PID 1 of a guest.  Sets the guest up, makes containers, watches their processes.

``protocol`` and ``linux`` are shared with the host and know nothing of containers.
"""

__version__ = "0.1.0"
