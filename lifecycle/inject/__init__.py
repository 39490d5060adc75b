"""Add cleanup, tailscale and dns-watch to the workloads in Kubernetes manifests. No server is contacted."""
