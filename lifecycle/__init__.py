"""Keeps one Headscale node and one Cloudflare record true for a Kubernetes pod."""

__version__ = "0.1.0"
