"""The desk: what faces may ask for, composed from stores, engine and signing keys; it decides nothing."""
