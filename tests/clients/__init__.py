"""Tests of the clients of Headscale, Cloudflare and Kubernetes. Most of them use simulators of these servers."""
