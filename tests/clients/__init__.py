"""Tests of the clients, against the simulators."""
