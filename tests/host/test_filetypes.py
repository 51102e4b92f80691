"""What a file is, in words: from real files of each kind."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from kedge.host.filetypes import HEAD, describe, is_program, is_tar


def tar(mode: str = "w") -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as archive:  # type: ignore[call-overload]
        member = tarfile.TarInfo("bin/app")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"app"))
    return made.getvalue()


def zipped() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("bin/app", "app")
    return made.getvalue()


KINDS: dict[str, bytes] = {
    "an empty file": b"",
    "a tar archive": tar(),
    "a tar archive packed with gzip": tar("w:gz"),
    "a gzip of a single file": gzip.compress(b"\x7fELF program" * 500),
    "a broken gzip file": b"\x1f\x8b\x08" + b"\xff" * 50,
    "a file packed with xz": lzma.compress(b"x"),
    "a file packed with bzip2": bz2.compress(b"x"),
    "a file packed with zstd": b"\x28\xb5\x2f\xfd\x04\x00\x01\x00",
    "a zip archive": zipped(),
    "an ELF program": Path(sys.executable).resolve().read_bytes()[:HEAD],
    "a script": b"#!/bin/sh\necho hello\n",
    "an HTML page": b"\xef\xbb\xbf\n <!doctype HTML>\n<title>404</title>",
    "an XML document": b"<?xml version='1.0'?><Error/>",
    "a JSON document": b'{"error": "not found"}',
    "a text file": ("Grüße, " * 1000).encode()[: HEAD + 1],
    "a Debian package": b"!<arch>\ndebian-binary   1342943816",
    "a file of an unknown format": bytes(range(256)),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_file_is_called_what_it_is(name: str) -> None:
    assert describe(KINDS[name][:HEAD]) == name


def test_a_character_that_the_head_cuts_is_text_still() -> None:
    assert describe(("a" + "ü" * HEAD).encode()[:HEAD]) == "a text file"


def test_only_a_header_whose_checksum_fits_is_a_tar() -> None:
    good = tar()
    assert is_tar(good)
    assert not is_tar(b"x" + good[1:])
    assert not is_tar(good[:511])


def test_programs_are_elf_or_name_their_interpreter() -> None:
    assert is_program(KINDS["an ELF program"])
    assert is_program(KINDS["a script"])
    assert not is_program(KINDS["a text file"])
