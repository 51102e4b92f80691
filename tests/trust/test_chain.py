"""The hash chain: every single change of a record is found at its place."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from kedge.model.base import Json, canonical
from kedge.trust.chain import (
    EvidenceEntry,
    EvidenceHead,
    Link,
    append,
    genesis,
    link,
    link_text,
    linked,
    verify,
)

NAME = "fleet/db"


def chain(count: int, name: str = NAME) -> list[Link]:
    links: list[Link] = []
    head = genesis(name)
    for number in range(count):
        links.append(append(head, {"number": number, "said": "wave opened"}))
        head = links[-1].hash
    return links


def test_an_untouched_chain_holds() -> None:
    found = verify(NAME, chain(20))
    assert (found.ok, found.count, found.place) == (True, 20, None)
    assert found.head == chain(20)[-1].hash


def test_an_empty_chain_holds_and_its_head_is_its_genesis() -> None:
    assert verify(NAME, []).head == genesis(NAME)
    assert verify(NAME, []).ok


@pytest.mark.parametrize("place", range(12))
def test_every_edit_is_found_at_its_place(place: int) -> None:
    links = chain(12)
    links[place] = links[place].model_copy(update={"record": {"number": place, "said": "nothing"}})
    found = verify(NAME, links)
    assert (found.ok, found.place, found.fault) == (False, place, "edited")


@pytest.mark.parametrize("place", range(12))
def test_an_edit_with_a_fitting_hash_is_found_at_the_next_record(place: int) -> None:
    links = chain(12)
    links[place] = append(links[place].previous, {"number": -1})
    found = verify(NAME, links, known={12: chain(12)[-1].hash})
    assert not found.ok
    assert found.place == min(place + 1, 11)
    assert found.fault == ("deleted" if place < 11 else "rewritten")


@pytest.mark.parametrize("place", range(11))
def test_every_deletion_is_found_at_its_place(place: int) -> None:
    links = chain(12)
    del links[place]
    found = verify(NAME, links)
    assert (found.ok, found.place, found.fault) == (False, place, "deleted")


@pytest.mark.parametrize("place", range(11))
def test_every_swap_is_found_at_its_place(place: int) -> None:
    links = chain(12)
    links[place], links[place + 1] = links[place + 1], links[place]
    found = verify(NAME, links)
    assert (found.ok, found.place, found.fault) == (False, place, "reordered")


@pytest.mark.parametrize("place", range(12))
def test_every_insertion_is_found_at_its_place(place: int) -> None:
    links = chain(12)
    links.insert(place, append(links[place].previous, {"number": -1}))
    found = verify(NAME, links)
    assert (found.ok, found.place, found.fault) == (False, place, "inserted")


def test_a_record_twice_is_an_insertion() -> None:
    links = chain(12)
    links.insert(5, links[4])
    found = verify(NAME, links)
    assert (found.place, found.fault) == (5, "inserted")


def test_truncation_is_found_by_a_known_head() -> None:
    full = chain(12)
    assert verify(NAME, full[:9]).ok
    found = verify(NAME, full[:9], known={12: full[-1].hash})
    assert (found.ok, found.place, found.fault) == (False, 9, "truncated")


def test_a_chain_written_anew_is_found_at_a_known_head() -> None:
    known = {6: chain(12)[5].hash}
    anew: list[Link] = []
    head = genesis(NAME)
    for number in range(12):
        anew.append(append(head, {"number": number + 1}))
        head = anew[-1].hash
    assert verify(NAME, anew).ok
    found = verify(NAME, anew, known=known)
    assert (found.ok, found.place, found.fault) == (False, 5, "rewritten")


def test_a_part_of_a_chain_is_verified_from_where_it_begins() -> None:
    whole = chain(12)
    begin = EvidenceHead(5, whole[4].hash)
    known = {5: whole[4].hash, 9: whole[8].hash, 12: whole[11].hash}
    assert verify(NAME, whole[5:], after=begin, known=known).ok
    assert verify(NAME, whole[5:11], after=begin, known=known).fault == "truncated"
    assert verify(NAME, whole[6:], after=begin, known=known).place == 0
    elsewhere = EvidenceHead(5, whole[3].hash)
    assert verify(NAME, whole[5:], after=elsewhere, known=known).fault == "rewritten"


def test_a_chain_is_not_passed_off_as_another() -> None:
    assert not verify("fleet/other", chain(3)).ok


@pytest.mark.parametrize("record", [float("nan"), 2**60, "\ud800"])
def test_a_record_without_a_canonical_form_is_not_linked_and_not_believed(record: Json) -> None:
    with pytest.raises(ValueError, match="not canonical"):
        link(genesis(NAME), record)
    forged = Link.model_construct(previous=genesis(NAME), record=record, hash="0" * 64)
    assert verify(NAME, [forged]).fault == "edited"


@pytest.mark.parametrize("name", ["hash", "previous"])
@pytest.mark.parametrize("text", ["", "zz", "é" * 64, "0" * 63])
def test_an_entry_whose_hash_is_none_is_found(name: str, text: str) -> None:
    first = chain(1)[0]
    entry = EvidenceEntry(1, "k", 1, first.previous, link(first.previous, linked("k", 1)))
    assert verify(NAME, [entry.link()]).ok
    wrong = replace(entry, hash=text) if name == "hash" else replace(entry, previous=text)
    assert verify(NAME, [wrong.link()]).fault == "edited"


def test_ten_thousand_records_are_verified_in_seconds() -> None:
    links = chain(10_000)
    begun = time.perf_counter()
    assert verify(NAME, links).ok
    assert time.perf_counter() - begun < 5


@pytest.mark.parametrize("key", ["a", "é/\n", 'quo"te'])
def test_a_link_of_the_canonical_form_is_the_link_of_the_record(key: str) -> None:
    record: Json = {"b": [1, 1.0, "ü", None], "a": {"z": True, "\u2028": 'x"'}}
    assert link_text("0" * 64, key, canonical(record)) == link("0" * 64, linked(key, record))
