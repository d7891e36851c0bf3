"""Model families: a small file each."""
