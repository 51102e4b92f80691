"""Frozen values and the error tree. Imports nothing else of kedge and does no I/O."""
