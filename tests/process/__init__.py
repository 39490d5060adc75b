"""Tests that run the commands as processes."""
