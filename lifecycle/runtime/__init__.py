"""Signals, retries, loops, time budgets and logging."""
