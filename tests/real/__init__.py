"""Tests with real Headscale servers and Tailscale clients. They are skipped if these programs are not installed."""
