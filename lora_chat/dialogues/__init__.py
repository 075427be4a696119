"""Words become token ids and labels."""
