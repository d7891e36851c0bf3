"""What clients speak: one module per dialect, each from its JSON to a common request and from common events back."""
