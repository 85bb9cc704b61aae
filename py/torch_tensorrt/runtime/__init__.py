"""Runtime caches that processes share, and the settings of engines."""
