"""Read and write the key file of the tailscale container, and the files beside it."""
