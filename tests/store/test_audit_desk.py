"""The audit trail read beside the process that writes it, on both databases, and never by mistake."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import attrs
import pytest
import pytest_twisted
from alembic.script import ScriptDirectory
from sqlalchemy import make_url, text
from twisted.internet.threads import deferToThread

from drimbox.store.auditchain import ChainCheck
from drimbox.store.auditdesk import AuditDesk
from drimbox.store.auditsearch import AuditQuery
from drimbox.store.errors import StoreDamaged, StoreError, StoreMissing, StoreOutdated, StoreTooNew
from drimbox.store.revision import newest
from drimbox.store.upgrade import configuration
from tests.store.conftest import Stores
from tests.store.samples import INS
from tests.store.test_audit import event

pytestmark = pytest.mark.requirement("DB.CS.10")


@attrs.frozen
class Now:
    def now(self) -> datetime:
        return datetime.now(UTC)


@pytest_twisted.ensureDeferred
async def test_it_searches_page_by_page_records_and_verifies_beside_the_writer(
    stores: Stores, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drimbox.store.auditdesk.PAGE", 3)
    for number in range(8):
        await stores.audit.record(event(ins=INS if number % 2 else "1"))

    def work() -> tuple[int, list[int], list[int], ChainCheck]:
        with AuditDesk(make_url(url)) as desk:
            own = desk.record(event(ins="2"), Now())
            every = [one.id for one in desk.search(AuditQuery(), limit=None, before=own)]
            some = [one.id for one in desk.search(AuditQuery(ins=INS), limit=3, before=own)]
            return own, every, some, desk.verify(None, lambda checked: None)

    own, every, some, check = await deferToThread(work)
    assert (own, every, some) == (9, [8, 7, 6, 5, 4, 3, 2, 1], [8, 6, 4])
    assert (check.fault, check.checked) == (None, 9)
    await stores.audit.record(event())
    assert (await stores.audit.verify()).checked == 10, "both write one chain"


@pytest_twisted.ensureDeferred
async def test_what_it_reads_with_cannot_write(stores: Stores, url: str) -> None:
    await stores.audit.record(event())

    def work() -> None:
        with AuditDesk(make_url(url)) as desk:
            desk._read(lambda connection: connection.execute(text("UPDATE notice SET code = 'x'")))

    with pytest.raises(StoreError, match=r"(?i)read-?only|lecture seule"):
        await deferToThread(work)


@pytest.mark.parametrize(("version", "error"), [("0001", StoreOutdated), ("9999", StoreTooNew)])
@pytest_twisted.ensureDeferred
async def test_a_store_of_another_version_is_left_alone(
    stores: Stores, url: str, version: str, error: type[Exception]
) -> None:
    change = text("UPDATE alembic_version SET version_num = :version")
    await stores.database.run(lambda c: c.execute(change, {"version": version}))
    with pytest.raises(error):
        await deferToThread(lambda: AuditDesk(make_url(url)).__enter__())


def test_what_is_no_store_is_said_to_be_none(tmp_path: Path) -> None:
    file = tmp_path / "other.db"
    url = make_url(f"sqlite:///{file}")
    with pytest.raises(StoreMissing):
        AuditDesk(url)
    file.touch()
    with pytest.raises(StoreDamaged), AuditDesk(url):
        pass


def test_the_newest_revision_is_that_of_the_migrations() -> None:
    assert newest() == ScriptDirectory.from_config(configuration()).get_current_head()
