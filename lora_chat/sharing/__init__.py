"""Hand over: the parcel, its receipt, card and signature, and the hub."""
