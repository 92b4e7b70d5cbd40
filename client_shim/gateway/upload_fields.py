"""The fields of requests for upload handles, and of their answers: numbers, structured fields, metadata.  (pure)

tus means the protocol "tus" 1.0.0, draft means draft-ietf-httpbis-resumable-upload-12.
"""

from __future__ import annotations

import base64
import binascii
import re
from email.message import Message
from typing import Any, TypeVar

import attrs
from http_sfv.dictionary import Dictionary
from http_sfv.item import Item

from client_shim.gateway.exchange import Headers, RequestHead
from client_shim.gateway.upload_errors import BadField, MissingField

T = TypeVar("T")

#: Any number in a request is from 0 to this: larger ones are not the same in every program.
NUMBER_MAX = 2**53 - 1
#: No file is larger. Structured fields have integers of 15 digits, and both dialects speak of the same files.
FILE_MAX = 10**15 - 1

_NUMBER = re.compile(r"[0-9]{1,16}", re.ASCII)
_NUMBER_EXPECTED = f"digits, from 0 to {NUMBER_MAX}"
_LONG_NUMBER = re.compile(r"[0-9]+", re.ASCII)


def in_bounds(value: object) -> bool:
    """Whether something is a number as offsets and lengths are."""
    return type(value) is int and 0 <= value <= NUMBER_MAX


def number_of(headers: Headers, name: str) -> int | None:
    """A field of digits alone, as tus has them; None if it is not there. Raises BadField."""
    text = single(headers, name)
    if text is None:
        return None
    if _NUMBER.fullmatch(text) is None or not in_bounds(int(text)):
        raise BadField(name, _NUMBER_EXPECTED)
    return int(text)


def length_of(headers: Headers, name: str) -> int | None:
    """As number_of; a length that is only too large is NUMBER_MAX, which is more than any file may have."""
    text = single(headers, name)
    if text is not None and _LONG_NUMBER.fullmatch(text):
        return min(NUMBER_MAX, int(text.lstrip("0")[:17] or "0"))
    return number_of(headers, name)


def single(headers: Headers, name: str) -> str | None:
    """The value of a field that may be there once. Raises BadField."""
    values = headers.get_all(name)
    if len(values) > 1:
        raise BadField(name, "it once")
    return values[0] if values else None


def needed(value: T | None, name: str, expected: str) -> T:
    """`value`, if it is there. Raises MissingField."""
    if value is None:
        raise MissingField(name, expected)
    return value


# -- structured fields -------------------------------------------------------------------------------------


def structured_number(headers: Headers, name: str) -> int | None:
    """The Integer of an Item; None if the field is not there, or is anything else: the draft wants it ignored then."""
    value = _item(headers, name)
    return value if in_bounds(value) else None


def structured_boolean(headers: Headers, name: str) -> bool | None:
    """The Boolean of an Item; None if the field is not there, or is anything else."""
    value = _item(headers, name)
    return value if isinstance(value, bool) else None


def _item(headers: Headers, name: str) -> Any:
    item = Item()
    try:
        item.parse(", ".join(headers.get_all(name)).encode("latin-1"))
    except ValueError:
        return None
    return item.value


def written_boolean(value: bool) -> str:
    """A Boolean as a structured field."""
    return str(Item(value))


def written_dictionary(**members: int) -> str:
    """A Dictionary of Integers; `_` in names stands for `-`."""
    dictionary = Dictionary()
    for name, value in members.items():
        dictionary[name.replace("_", "-")] = value
    return str(dictionary)


# -- what tus has ------------------------------------------------------------------------------------------


def metadata_of(headers: Headers) -> tuple[str, dict[str, bytes]]:
    """Upload-Metadata as it came, and the values of its keys. An empty field is none. Raises BadField."""
    text = ",".join(value for value in headers.get_all("upload-metadata") if value)
    values: dict[str, bytes] = {}
    for pair in text.split(",") if text else ():
        key, _space, value = pair.strip(" ").partition(" ")
        if not key or key in values:
            raise BadField("Upload-Metadata", "pairs of a key, which is not repeated, and a value in Base64")
        try:
            values[key] = base64.b64decode(value.encode("ascii"), validate=True)
        except (UnicodeEncodeError, binascii.Error):
            raise BadField("Upload-Metadata", "values in Base64") from None
    return text, values


@attrs.frozen
class Checksum:
    """What Upload-Checksum says."""

    algorithm: str
    digest: bytes


def checksum_of(headers: Headers) -> Checksum | None:
    """Upload-Checksum, if it is there. Raises BadField."""
    text = single(headers, "upload-checksum")
    if text is None:
        return None
    algorithm, _space, digest = text.partition(" ")
    try:
        return Checksum(algorithm, base64.b64decode(digest.encode("ascii"), validate=True))
    except (UnicodeEncodeError, binascii.Error):
        raise BadField("Upload-Checksum", "the name of an algorithm, a space and a digest in Base64") from None


# -- others ------------------------------------------------------------------------------------------------


def media_type_of(headers: Headers) -> str:
    """Content-Type without its parameters, in lower case; empty if there is none."""
    return (headers.get("content-type") or "").partition(";")[0].strip().lower()


def file_name_of(headers: Headers) -> str | None:
    """The filename of Content-Disposition (RFC 6266), if there is one."""
    value = headers.get("content-disposition")
    if value is None:
        return None
    message = Message()
    message["Content-Disposition"] = value
    names = [text for name, text in message.get_params([], "content-disposition") if name.lower() == "filename"]
    # filename*, which comes as a tuple, is what those understand who understand it
    for name in sorted(names, key=lambda name: isinstance(name, str)):
        return (_decoded(name, "utf-8") if isinstance(name, str) else _decoded(name[2], name[0] or "ascii")) or None
    return None


def _decoded(text: str, charset: str) -> str:
    """Bytes that came as Latin-1, in the charset that was meant if that is possible."""
    try:
        return text.encode("latin-1").decode(charset)
    except (UnicodeError, LookupError):
        return text


def remaining_length(head: RequestHead) -> int | None:
    """Bytes of the body, if they are declared."""
    return head.content_length if head.has_body else 0
