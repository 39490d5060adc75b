"""Show every workload of DNS_OWNER, and what needs manual action. Nothing is changed."""
