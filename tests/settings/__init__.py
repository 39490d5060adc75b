"""Settings: parsing, defaults, names, secrets, proxies."""
