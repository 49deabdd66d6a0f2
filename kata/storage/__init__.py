"""Root file systems and volumes on their way into a machine.

``clone`` takes a mount along as a descriptor (in the verb, in its caller's
mount namespace), ``share`` attaches it to the tree that QEMU exports (in the
proxy), ``mountns`` makes the mount namespace in which the proxy and QEMU live.
"""
