"""Read and change the DNS records of one Cloudflare zone."""
