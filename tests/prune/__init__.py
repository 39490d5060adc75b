"""Tests of the command `lifecycle prune`."""
