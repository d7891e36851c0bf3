"""How families of models write calls and thinking: one JSON file each, read by ``braid.text.format_data``."""
