"""Durable interpreters of plans: thin and deterministic. They read no clock but the workflow's, do no I/O,
and compute no policy: ``kedge.plan`` decides, activities act.
"""
