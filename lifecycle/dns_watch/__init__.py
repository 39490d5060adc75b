"""Keeps the service's DNS record true for as long as the pod lives."""
