"""The NAS toolkit: proxies, search spaces, supernets, ranking."""
