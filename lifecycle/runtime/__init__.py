"""Signals, retries, the loop and logging."""
