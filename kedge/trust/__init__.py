"""Bytes in, verdict out: signatures, orders, approvals, warrants and the hash chain. No network, no clock."""
