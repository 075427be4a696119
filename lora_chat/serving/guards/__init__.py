"""Who may ask, and how much: checks before any work."""
