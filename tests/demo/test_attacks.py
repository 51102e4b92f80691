"""What the show spoils, it spoils at the place that it says, and puts back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from demo.proving import a_step
from demo.show import ShowError
from demo.summary import occurrences
from demo.trusting import flip, one_bit_changed


def test_one_bit_is_changed_for_a_while(tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    file.write_bytes(b"0123456789")
    with one_bit_changed(file, 4):
        assert file.read_bytes() == b"0123556789"
    assert file.read_bytes() == b"0123456789"


def test_it_is_put_back_whatever_happens_meanwhile(tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    file.write_bytes(b"0123456789")
    with pytest.raises(ShowError), one_bit_changed(file, 0):
        raise ShowError("something else")
    assert file.read_bytes() == b"0123456789"


def entry(seq: int, **record: object) -> bytes:
    line = json.dumps({"entry": {"seq": seq, "record": record}}, separators=(",", ":"))
    return line.encode() + b"\n"


def test_the_place_is_the_last_letter_of_a_nodes_name_in_the_middle(tmp_path: Path) -> None:
    file = tmp_path / "a.evidence"
    legs = [entry(seq, what="leg", node=f"etcd-{seq}", before={"node": 1}) for seq in (7, 8, 9)]
    lines = [b'{"header":{}}\n', entry(6, what="order"), *legs, entry(10, said="etcd-8")]
    file.write_bytes(b"".join(lines))
    spot = a_step(file)
    assert (spot.line, spot.seq, spot.node) == (4, 8, "etcd-8")
    flip(file, spot.place)
    changed = file.read_bytes().splitlines(keepends=True)
    assert [number for number, line in enumerate(lines, 1) if line != changed[number - 1]] == [4]
    assert json.loads(changed[3])["entry"]["record"]["node"] == "etcd-9"


def test_a_file_without_a_step_has_no_such_place(tmp_path: Path) -> None:
    file = tmp_path / "a.evidence"
    file.write_bytes(entry(1, what="order"))
    with pytest.raises(ShowError, match="says nothing"):
        a_step(file)


def test_words_are_looked_for_in_every_file_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    (tmp_path / "temporal.db").write_bytes(b"\0etcd-1\0etcd-1")
    (tmp_path / "deeper" / "temporal.db-wal").write_bytes(b"etcd-2 upgrade/etcd/1")
    found, size = occurrences(tmp_path, ["etcd-1", "etcd-2", "etcd-3"])
    assert (found, size) == ({"etcd-1": 2, "etcd-2": 1, "etcd-3": 0}, 35)
