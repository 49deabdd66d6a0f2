"""What carries requests to an agent that is not ours, and ours to others: yamux, gRPC."""
