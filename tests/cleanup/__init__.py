"""Tests of `cleanup`."""
