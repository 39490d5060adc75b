"""Clients of Headscale, Cloudflare and the Kubernetes API. Most methods return values of `domain.model`.

Failures are raised as errors of `domain.errors`.
"""
