"""Clients from the settings; no other module constructs one."""
