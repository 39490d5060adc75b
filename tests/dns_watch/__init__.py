"""Tests of `dns-watch`."""
