"""The health port of dns-watch."""
