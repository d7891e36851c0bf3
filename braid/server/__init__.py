"""HTTP shell: routes, schemas, streams, limits, metrics. Free of torch."""
