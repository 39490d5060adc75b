"""Delete the nodes and records of workloads that no longer run. Without --yes, only the plan is printed."""
