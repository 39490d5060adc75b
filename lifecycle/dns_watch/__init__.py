"""Keeps the DNS record of the pod in sync as long as the pod runs."""
