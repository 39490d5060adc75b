"""Alerts and the dashboard, with a real Prometheus."""
