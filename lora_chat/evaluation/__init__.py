"""Measure: base against adapted."""
