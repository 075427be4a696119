"""Decide, with no weights touched."""
