"""Services of the operating system and the interpreter: workers, caches, text for the terminal, strict JSON."""
