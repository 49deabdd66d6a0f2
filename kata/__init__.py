"""Kata: an OCI runtime that gives every container or pod its own virtual machine."""

__version__ = "0.1.0"
OCI_VERSION = "1.2.0"
