"""Tests of `prune`."""
