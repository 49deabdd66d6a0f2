"""What host and guest say to each other: protobuf messages and ttRPC frames.

To be imported before anything of protobuf.
"""

import sys

from google.protobuf.internal import api_implementation

if api_implementation.Type() != "python":
    # protobuf imports its implementation in Python whichever it uses, and with it text_format, datetime, pickle:
    # half of what a proxy and an agent import of it.  None of our messages is one of the well-known types, for which
    # it has methods in Python.
    for name in ("descriptor_database", "text_encoding", "internal.python_message", "internal.python_edition_defaults",
                 "internal.well_known_types"):
        unused = sys.modules.setdefault(f"google.protobuf.{name}", type(sys)("unused"))
        unused.__dict__.setdefault("WKTBASES", {})
