"""Pipeline splits: planning, leases, host, worker."""
