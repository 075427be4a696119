"""Weights: the base model, the adapter, and what they say."""
