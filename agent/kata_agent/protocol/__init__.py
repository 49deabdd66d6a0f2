"""What host and guest say to each other: protobuf messages and ttRPC frames."""
