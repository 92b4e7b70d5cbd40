"""Which requests are streamed, and which the node has to judge."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from allmydata import uri

from client_shim.gateway.exchange import Headers, RequestHead
from client_shim.gateway.upload_requests import Place, is_form, is_put_unlinked, place_in, place_of_put

_WRITE = uri.WriteableSSKFileURI(b"k" * 16, b"f" * 32)
_WRITE_MDMF = uri.WriteableMDMFFileURI(b"k" * 16, b"f" * 32)
DIRECTORY = uri.DirectoryURI(_WRITE)
CAPS = {
    "directory": (DIRECTORY, True),
    "MDMF directory": (uri.MDMFDirectoryURI(_WRITE_MDMF), True),
    "read-only directory": (DIRECTORY.get_readonly(), False),
    "read-only MDMF directory": (uri.MDMFDirectoryURI(_WRITE_MDMF).get_readonly(), False),
    "verify cap": (DIRECTORY.get_verify_cap(), False),
    "immutable directory": (uri.ImmutableDirectoryURI(uri.CHKFileURI(b"k" * 16, b"u" * 32, 3, 10, 100)), False),
    "literal directory": (uri.LiteralDirectoryURI(uri.LiteralFileURI(b"")), False),
    "mutable file": (_WRITE, False),
    "file": (uri.CHKFileURI(b"k" * 16, b"u" * 32, 3, 10, 100), False),
}
CAP = DIRECTORY.to_string().decode()


def head(method: str, target: str, **fields: str) -> RequestHead:
    return RequestHead(method, target, Headers(tuple((name.replace("_", "-"), value)
                                                     for name, value in fields.items())))


#: Arguments of a PUT, and whether it makes an immutable file.
ARGUMENTS = [
    ("", True), ("?", True), ("?format=CHK", True), ("?format=chk", True), ("?format=", True), ("?t=", True),
    ("?t=%20", True), ("?mutable=false", True), ("?mutable=0", True), ("?format=CHK&mutable=true", True),
    ("?format=&mutable=off", True), ("?unknown=1", True),
    ("?format=SDMF", False), ("?format=mdmf", False), ("?format=CBR", False), ("?mutable=true", False),
    ("?mutable=on", False), ("?mutable=maybe", False), ("?mutable=", False), ("?format=&mutable=t", False),
    ("?t=mkdir", False), ("?t=uri", False), ("?t=upload", False), ("?t=json", False), ("?offset=0", False),
    ("?format=SDMF&format=CHK", False), ("?format=CHK&format=SDMF", True),
    ("?a=b;mutable=true", False), ("?%6dutable=true", False), ("?mutable=%74rue", False),
]


@pytest.mark.parametrize(("arguments", "immutable"), ARGUMENTS)
@pytest.mark.parametrize("root", ["/uri", "/cap"])
def test_put_unlinked(root: str, arguments: str, immutable: bool) -> None:
    assert is_put_unlinked(head("PUT", root + arguments)) is immutable
    assert not is_put_unlinked(head("POST", root + arguments))
    assert not is_put_unlinked(head("PUT", root + "/" + arguments))
    assert not is_put_unlinked(head("PUT", root + arguments, Content_Range="bytes 0-1/2"))


@pytest.mark.parametrize(("arguments", "immutable"), ARGUMENTS)
@pytest.mark.parametrize("cap", [CAP, quote(CAP, safe="")])
def test_put_into_a_directory(cap: str, arguments: str, immutable: bool) -> None:
    place = place_of_put(head("PUT", f"/uri/{cap}/sub/n%C3%A4me{arguments}"))
    assert place == (Place(f"/uri/{cap}/sub/n%C3%A4me") if immutable else None)


@pytest.mark.parametrize("kind", CAPS)
def test_only_directories_that_can_be_written(kind: str) -> None:
    cap, writable = CAPS[kind]
    path = f"/uri/{quote(cap.to_string().decode(), safe='')}/name"
    assert (place_of_put(head("PUT", path)) is not None) is writable
    assert (place_in(cap.to_string().decode(), "name") is not None) is writable


@pytest.mark.parametrize("path", [
    f"/uri/{CAP}", f"/uri/{CAP}/", f"/uri/{CAP}/a/", f"/uri/{CAP}//a", f"/uri//{CAP}/a", f"//uri/{CAP}/a",
    f"/file/{CAP}/a", "/uri/URI:DIR2:nonsense/a", "/uri//a", "/uri/a/b", "/uri/%00/a", "/uploads/a", "/",
    f"/%75ri/{CAP}/a"])
def test_paths_that_the_node_judges(path: str) -> None:
    assert place_of_put(head("PUT", path)) is None
    assert not is_put_unlinked(head("PUT", path))


@pytest.mark.parametrize(("replace", "asked"), [
    ("", "only-files"), ("?replace=true", "only-files"), ("?replace=1", "only-files"),
    ("?replace=only-files", "only-files"), ("?replace=Only-Files", "only-files"), ("?replace=false", "false"),
    ("?replace=0", "false"), ("?replace=perhaps", None), ("?replace=true&replace=false", "only-files")])
def test_replace(replace: str, asked: str | None) -> None:
    place = place_of_put(head("PUT", f"/uri/{CAP}/a{replace}"))
    assert (None if place is None else place.replace) == asked


def test_names_in_directories() -> None:
    cap = quote(CAP, safe="")
    assert place_in(CAP, "ä b%2F?#") == Place(f"/uri/{cap}/%C3%A4%20b%252F%3F%23")
    for name in ("", "a/b"):
        assert place_in(CAP, name) is None


@pytest.mark.parametrize(("target", "content_type", "taken"), [
    ("/uri", "multipart/form-data; boundary=x", True), ("/uri", "Multipart/Form-Data;charset=a;boundary=x", True),
    ("/uri?t=upload", "multipart/form-data; boundary=x", True), ("/cap", "multipart/form-data; boundary=x", True),
    ("/uri?format=SDMF", "multipart/form-data; boundary=x", False),
    ("/uri?mutable=true", "multipart/form-data; boundary=x", False),
    ("/uri?t=mkdir", "multipart/form-data; boundary=x", False),
    ("/uri?a;t=mkdir", "multipart/form-data; boundary=x", False),
    ("/uri", "multipart/form-data", False), ("/uri", "multipart/mixed; boundary=x", False),
    ("/uri", "application/x-www-form-urlencoded", False), (f"/uri/{CAP}", "multipart/form-data; boundary=x", False)])
def test_forms(target: str, content_type: str, taken: bool) -> None:
    assert is_form(head("POST", target, Content_Type=content_type)) is taken
    assert not is_form(head("PUT", target, Content_Type=content_type))
