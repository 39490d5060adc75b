"""Simulators of the upstreams of the lifecycle commands."""
