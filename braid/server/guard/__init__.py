"""What every request passes before anything shared is touched: identity, keys, hosts, quotas, the body's form."""
