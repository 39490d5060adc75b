"""Tests of the command `lifecycle cleanup`."""
