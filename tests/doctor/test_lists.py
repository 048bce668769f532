"""`drimbox doctor` looks at the revocation lists of the RIS, by the authorities of these."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.web.server import Site
from twisted.web.static import Data

from drimbox.clock import SystemClock
from drimbox.config import Certificate, Hl7TlsSettings, TrustSettings
from drimbox.doctor.findings import Finding, State
from drimbox.doctor.lists import Lists
from tests.trust.conftest import Issued, crl, issue, name
from tests.trust.test_responder import listening
from tests.trust.test_revocation import der

pytestmark = pytest.mark.requirement("DB.SO.111", "DB.SO.03")


async def looked(folder: Path, authority: Issued, published: bytes, **changes: Any) -> list[Finding]:
    roots = folder / "roots.pem"
    roots.write_bytes(authority.pem())
    page = Data(published, "application/pkix-crl")
    page.isLeaf = True
    with listening(Site(page)) as url:
        tls = Hl7TlsSettings(Certificate(), "required", roots, crl_urls=(url,))
        config: Any = SimpleNamespace(
            trust=TrustSettings(Path(), Path(), Path()),
            hl7=SimpleNamespace(tls=attrs.evolve(tls, **changes)),
            proxy=None,
            sites=(),
        )
        holder: Any = None
        return await Lists(config, holder, reactor, SystemClock(), deferToThread).crls()


@pytest_twisted.ensureDeferred
async def test_the_lists_of_the_ris_are_verified_by_their_own_authorities(tmp_path: Path) -> None:
    authority, other = issue(name("AC RIS"), ca=True), issue(name("AUTRE"), ca=True)
    (good,) = await looked(tmp_path, authority, der(crl(authority)))
    assert (good.check, good.state) == ("crl", State.OK)
    (bad,) = await looked(tmp_path, authority, der(crl(other)))
    assert (bad.state, "client_roots" in bad.mend) == (State.ERROR, True)
    (bad,) = await looked(tmp_path, authority, b"<html>")
    assert (bad.state, "illisible" in bad.text) == (State.ERROR, True)
    assert await looked(tmp_path, authority, b"", crl_urls=()) == []
    assert await looked(tmp_path, authority, b"", client_roots=None) == []
