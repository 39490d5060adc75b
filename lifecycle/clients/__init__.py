"""Clients of Headscale, Cloudflare and the Kubernetes API. Failures are raised as errors of `domain.errors`."""
