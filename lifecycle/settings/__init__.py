"""Settings from the environment: one class per command."""
