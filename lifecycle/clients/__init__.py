"""Clients of the upstreams. Their methods return values of `domain.model`, and raise errors of `domain.errors`."""
