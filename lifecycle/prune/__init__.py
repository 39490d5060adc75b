"""Delete what workloads that no longer exist left behind. Without --yes, only the plan is shown."""
