"""The host side of a sandbox's network.

``netns`` makes and checks network namespaces, ``inventory`` reads what is in
one, ``watch`` tells what changed, ``tap`` and ``wire`` connect an interface to
the machine.  All but ``netns`` work on the network namespace of the calling
thread: the proxy lives in its sandbox's.
"""
