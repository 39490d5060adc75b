"""Tests of the alert rules and the dashboard, with a real Prometheus."""
