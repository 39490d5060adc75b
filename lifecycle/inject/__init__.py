"""Add cleanup, tailscale and dns-watch to the workloads in Kubernetes manifests. It reads and writes text only."""
