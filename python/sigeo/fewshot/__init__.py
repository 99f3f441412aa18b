"""Few-shot search: a space divided among several supernets."""
