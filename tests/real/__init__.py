"""Tests of the commands with real Headscale servers and Tailscale clients, skipped if these are not installed."""
