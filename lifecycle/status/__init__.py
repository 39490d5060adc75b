"""Show every workload of DNS_OWNER, and what needs a person. Nothing is changed."""
