"""Show the workloads of one DNS_OWNER, and what needs manual action. Nothing is changed."""
