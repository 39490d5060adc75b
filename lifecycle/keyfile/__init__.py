"""The key file that the tailscale container reads, and the key metadata beside it."""
