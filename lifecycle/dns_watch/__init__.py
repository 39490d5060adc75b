"""Keep the DNS record in sync with the pod's node as long as the pod runs."""
