"""Simulators of the servers with which the program communicates: Headscale, Cloudflare and the Kubernetes API."""
