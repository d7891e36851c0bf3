"""What an operator can see: metrics, the access log, the request log, spans."""
