"""Tests of the settings, which the commands read from environment variables and files."""
