"""Nodes, pre-auth keys and users of a Headscale server, on every version from 0.23 on."""
