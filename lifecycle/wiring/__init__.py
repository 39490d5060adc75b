"""Create clients from the settings. No other package creates the clients of Headscale and Cloudflare."""
