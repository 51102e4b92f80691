"""What a file is, by its first bytes, in words for an error message. It decides nothing about what is unpacked.

The signatures are those of the formats' own documents (RFC 1952 gzip, RFC 8878 zstd, POSIX ustar, APPNOTE zip, ELF,
PE, Mach-O, deb, RPM); 4 KiB of a file are enough for all of them.
"""

from __future__ import annotations

import zlib

UNKNOWN = "a file of an unknown format"
HEAD = 4096
"""Bytes of a file's beginning that :func:`describe` looks at."""

_SIGNATURES = (
    (b"\x7fELF", "an ELF program"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\xed\xab\xee\xdb", "an RPM package"),
    (b"!<arch>\ndebian-binary", "a Debian package"),
    (b"!<arch>\n", "an ar archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"MZ", "a Windows program"),
    (b"\xcf\xfa\xed\xfe", "a macOS program"),
    (b"\xca\xfe\xba\xbe", "a macOS program or a Java class"),
    (b"%PDF-", "a PDF document"),
    (b"-----BEGIN PGP", "an OpenPGP signature or key"),
)
_PACKED = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"BZh", "bzip2"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
)


def is_tar(head: bytes) -> bool:
    """Whether these first bytes are a tar header: its checksum fits (POSIX ustar and older forms)."""
    if len(head) < 512:
        return False
    block = head[:512]
    digits = block[148:156].strip(b"\0 ")
    if not digits or any(sign not in b"01234567" for sign in digits):
        return False
    return int(digits, 8) == sum(block[:148]) + 256 + sum(block[156:])


def is_program(head: bytes) -> bool:
    """Whether these first bytes are those of a program that Linux starts: ELF, or a script with its interpreter."""
    return head.startswith((b"\x7fELF", b"#!"))


def is_text(head: bytes) -> bool:
    """Whether these first bytes are text (a page, a document, a script), or nothing at all."""
    return not head or (not is_tar(head) and _text(head) != UNKNOWN)


def describe(head: bytes) -> str:
    """A noun phrase for a file that begins with these bytes, such as "a gzip of a single file" or "an HTML page"."""
    if not head:
        return "an empty file"
    if is_tar(head):
        return "a tar archive"
    for signature, packing in _PACKED:
        if head.startswith(signature):
            return _packed(head, packing)
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    return _text(head)


def _packed(head: bytes, packing: str) -> str:
    if packing != "gzip":
        return f"a file packed with {packing}"
    try:
        inner = zlib.decompressobj(31).decompress(head, 512)
    except zlib.error:
        return "a broken gzip file"
    if is_tar(inner):
        return "a tar archive packed with gzip"
    return "a gzip of a single file"


def _text(head: bytes) -> str:
    if head.startswith(b"#!"):
        return "a script"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:256].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if start.startswith(b"<?xml"):
        return "an XML document"
    if b"\0" in head:
        return UNKNOWN
    if start.startswith((b"{", b"[")):
        return "a JSON document"
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        # The head may end inside a character.
        if error.start < len(head) - 3:
            return UNKNOWN
    return "a text file"
