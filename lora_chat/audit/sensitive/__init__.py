"""Texts that nobody should learn by heart: secrets and personal data, found by format, checksum and context."""
