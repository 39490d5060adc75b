"""The commands against real Headscale servers and real Tailscale clients, where those are installed."""
