"""Delete the nodes and records of workloads that no longer exist. Without --yes, only the plan is shown."""
