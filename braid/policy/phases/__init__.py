"""How prefill and decode share the machine."""
