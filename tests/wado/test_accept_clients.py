"""What real DICOMweb clients write into Accept, and what it means here.

Those of dicomweb-client are taken from the installed library; the others are written down as their programs
send them. `transfer-syntax=*` is "as stored", none at all is Explicit VR Little Endian (PS3.18 8.7.3.5.2):
the difference is where viewers and servers misunderstand each other most.
"""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import pytest

from drimbox.dicom import syntaxes as s
from drimbox.errors import BadRequest
from drimbox.wado.accept import Acceptable, parse
from drimbox.wado.query import LOSSLESS, LOSSY, accept_values

LE, JLS, SV1 = s.EXPLICIT_LE, s.JPEG_LS_LOSSLESS, s.JPEG_LOSSLESS_SV1
AS_STORED = Acceptable((), 1.0)
NATIVE = Acceptable(((LE, 1.0),))


@attrs.frozen
class Sent:
    """The lines of one program, and their meaning."""

    lines: tuple[str, ...]
    meaning: Acceptable


CLIENTS: dict[str, Sent] = {
    "curl, wget, python-requests": Sent(("*/*",), NATIVE),
    "OHIF, whole instances": Sent(
        ('multipart/related; type="application/dicom"; transfer-syntax=*',), AS_STORED
    ),
    "OHIF 2, before transfer syntaxes": Sent(('multipart/related; type="application/dicom"',), NATIVE),
    "dicomweb-client (JavaScript), list": Sent(
        (
            'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.80, '
            'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.1',
        ),
        Acceptable(((JLS, 1.0), (LE, 1.0))),
    ),
    "Weasis, as stored": Sent(
        (
            'multipart/related;type="application/dicom";transfer-syntax=*, '
            'multipart/related;type="application/dicom"',
        ),
        Acceptable(((LE, 1.0),), 1.0),
    ),
    "Orthanc, with universal transfer syntax": Sent(
        ('multipart/related; type="application/dicom"; transfer-syntax=*',), AS_STORED
    ),
    "Orthanc, without": Sent(('multipart/related; type="application/dicom"',), NATIVE),
    "dcm4che wadors": Sent(("multipart/related;type=application/dicom;transfer-syntax=*",), AS_STORED),
    "Java without an Accept of its own": Sent(
        ("text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2",), Acceptable(((LE, 0.2),))
    ),
    "a browser that is given the address": Sent(
        (
            "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,"
            "application/signed-exchange;v=b3;q=0.7",
        ),
        Acceptable(((LE, 0.8),)),
    ),
    "HAPI and RESTEasy, several lines": Sent(
        (
            "multipart/related;type=application/dicom;transfer-syntax=1.2.840.10008.1.2.4.70;q=0.9;boundary=**",
            "multipart/related;type=application/dicom;transfer-syntax=1.2.840.10008.1.2.1;q=0.4;boundary=**,",
        ),
        Acceptable(((SV1, 0.9), (LE, 0.4))),
    ),
}


@pytest.mark.requirement("DB.SO.85")
@pytest.mark.parametrize("name", CLIENTS)
def test_a_real_client_is_understood(name: str) -> None:
    sent = CLIENTS[name]
    assert parse(line.encode() for line in sent.lines) == sent.meaning


@pytest.mark.parametrize(
    ("media", "meaning"),
    [
        (None, NATIVE),
        ((("application/dicom", "*"),), AS_STORED),
        ((("application/dicom", JLS),), Acceptable(((JLS, 1.0),))),
    ],
)
def test_dicomweb_client_is_understood(media: Any, meaning: Acceptable) -> None:
    """The header that the library of that name really makes."""
    dicomweb_client = pytest.importorskip("dicomweb_client")
    seen: list[str] = []

    class Sent(Exception):
        pass

    class Session:
        headers: ClassVar[dict[str, str]] = {}

        def get(self, url: str, **options: Any) -> None:
            seen.append(options["headers"]["Accept"])
            raise Sent

        def mount(self, *_: Any) -> None:
            pass

    client = dicomweb_client.DICOMwebClient("https://db1.349.example", session=Session())
    client.set_http_retry_params(retry=False)
    with pytest.raises(Sent):
        client.retrieve_series("1.2", "1.3", media_types=media)
    assert parse([seen[0].encode()]) == meaning


def test_our_own_consumer_is_understood() -> None:
    for ranges in (LOSSLESS, LOSSY):
        read = parse(value.encode() for value in accept_values(ranges))
        assert dict(read.ranked) == {uid: float(q) for uid, q in ranges}
        assert read.any is None


@pytest.mark.parametrize(
    "line",
    [
        # Frames, bulk data, metadata, rendered images: nothing of what this gateway serves.
        "multipart/related; type=application/octet-stream; transfer-syntax=*",
        'multipart/related; type="image/jls"; transfer-syntax=1.2.840.10008.1.2.4.80',
        "application/dicom+json",
        "multipart/related; type=application/dicom+xml",
        "image/jpeg",
        "application/zip",
        'multipart/mixed; type="application/dicom"',
        # One instance as it is, without its multipart: not what interfaces.md 6.2 has.
        "application/dicom; transfer-syntax=*",
    ],
)
def test_what_asks_for_something_else_is_400(line: str) -> None:
    with pytest.raises(BadRequest):
        parse([line.encode()])


@pytest.mark.parametrize(
    "noise", ["*", "text/*;q=0.1", "multipart/mixed", "application/dicom+json;q=1", "a", "x/y;z"]
)
def test_other_ranges_beside_ours_change_nothing(noise: str) -> None:
    ours = f'multipart/related; type="application/dicom"; transfer-syntax={JLS}; q=0.5'
    for line in (f"{noise}, {ours}", f"{ours}, {noise}", f"{ours};level=1;x=y, {noise},"):
        assert parse([line.encode()]) == Acceptable(((JLS, 0.5),))
