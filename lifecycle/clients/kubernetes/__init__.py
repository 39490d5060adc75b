"""The few requests that this program sends to the Kubernetes API."""
