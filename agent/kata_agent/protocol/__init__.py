"""What host and guest say to each other: protobuf messages and ttRPC frames."""

import sys

from google.protobuf.internal import api_implementation

if api_implementation.Type() != "python":
    # protobuf imports its implementation in Python whichever it uses, and with it text_format, pickle, calendar:
    # half of what a proxy and an agent import of it.
    sys.modules.setdefault("google.protobuf.internal.python_message", type(sys)("unused"))
