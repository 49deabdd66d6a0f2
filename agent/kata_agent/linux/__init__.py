"""Linux system calls and rtnetlink, shared by host and guest.

No policy lives here and nothing but the standard library is imported.
"""
