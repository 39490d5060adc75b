"""Keeps a pod's Headscale node and DNS record in sync."""

__version__ = "0.1.0"
