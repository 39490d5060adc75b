"""Delete what earlier pods of this workload left behind, and write a fresh pre-auth key."""
