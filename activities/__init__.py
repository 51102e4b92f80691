"""Retryable, idempotent, fenced effects over ports. They decide nothing: ``kedge.plan`` and ``kedge.trust`` do."""
