"""The documents of a small fleet, in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plan.samples import AFTER, BEFORE, FLEET, POLICY, RUNBOOK


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (
        ("etcd.yaml", FLEET), ("etcd-3.5.0.yaml", BEFORE), ("etcd-3.5.1.yaml", AFTER), ("policy.yaml", POLICY),
        ("runbook.yaml", RUNBOOK),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
    return tmp_path
