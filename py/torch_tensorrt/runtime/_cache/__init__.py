"""The runtime cache file, its lock and its handle."""
