"""One Cloudflare zone and its DNS records."""
