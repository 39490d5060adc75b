"""Clients of the upstreams: their methods return values of `domain.model` and raise errors of `domain.errors`."""
