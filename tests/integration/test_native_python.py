"""An editor's class: the one of docs/native.md, as it stands there, in a gateway of its own."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from drimbox.sim.stand import NativeAddress
from drimbox.sim.studies import GeneratedStudy, make_study
from tests.integration.hospital import JPEG_LS, Hospital, digests, received
from tests.integration.waiting import until, wait

DOCUMENT = Path(__file__).parents[2] / "docs" / "native.md"


class EditorsHospital(Hospital):
    """One site whose archive is a folder, read by the class of the document."""

    def __init__(self, folder: Path) -> None:
        self.archive = folder / "archive"
        self.archive.mkdir(parents=True)
        (module,) = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text("utf-8"), re.M | re.S)
        (folder / "modules").mkdir()
        (folder / "modules" / "monpacs.py").write_text(module, "utf-8")
        super().__init__(folder, pacses=self._address, wado={"instance_level": "true"})

    def _address(self, port: int) -> Sequence[Any]:
        settings = {
            "kind": '"python"',
            "factory": '"monpacs:archive"',
            "settings": f'"{self.archive}"',
            "poll": "1",
        }
        return [NativeAddress(settings)]

    def store(self, study: GeneratedStudy, *numbers: int) -> None:
        target = self.archive / study.study_uid
        target.mkdir(exist_ok=True)
        for number, instance in enumerate(study.instances):
            if not numbers or number in numbers:
                shutil.copy(instance.path, target / instance.path.name)


@pytest.fixture(scope="module")
def editors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EditorsHospital]:
    hospital = EditorsHospital(tmp_path_factory.mktemp("editor"))
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(hospital.folder / "modules"), before]))
    try:
        wait(hospital.start())
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    try:
        yield hospital
    finally:
        wait(hospital.stop())


@pytest.mark.requirement("DB.SO.165", "DB.SO.32", "DB.SO.195")
@pytest_twisted.ensureDeferred
async def test_the_class_of_the_document_serves_a_study(editors: EditorsHospital, tmp_path: Path) -> None:
    how: dict[str, Any] = {"instances": 10, "series": 2, "rows": 256, "columns": 256}
    study = make_study(tmp_path, transfer_syntax=JPEG_LS, **how)
    editors.store(study)
    served = await editors.publish(study)
    for series in range(2):
        result = await editors.fetch(served, series)
        assert result.complete, (result.status, result.problem, result.error)
        assert received(result) == digests(study, series)
    wanted = study.series[0].instances[2].sop_instance_uid
    result = await editors.fetch(served, instance=wanted)
    assert received(result) == {wanted: digests(study)[wanted]}


@pytest.mark.requirement("DB.SO.27")
@pytest_twisted.ensureDeferred
async def test_its_changes_are_noticed_without_a_line_more(
    editors: EditorsHospital, tmp_path: Path
) -> None:
    study = make_study(tmp_path, instances=3, study_uid="2.25.88001")
    editors.store(study, 0)
    served = await editors.publish(study)
    editors.store(study, 1, 2)
    query = "select sop_instance_uid from kos where study_uid = '2.25.88001' and state = 'published'"
    await until(lambda: editors.database(query) not in ([], [(served.kos,)]), what="another KOS")
    ((kos,),) = editors.database(query)
    result = await editors.fetch(served, kos=kos)
    assert result.complete, (result.status, result.problem, result.error)
    assert received(result) == digests(study)


@pytest.mark.requirement("DB.SO.47")
@pytest_twisted.ensureDeferred
async def test_a_broken_file_of_it_is_no_false_whole(editors: EditorsHospital, tmp_path: Path) -> None:
    study = make_study(tmp_path, instances=4, study_uid="2.25.88002", transfer_syntax=JPEG_LS)
    editors.store(study)
    served = await editors.publish(study)
    # Of another study under the right name; its index says nothing of it.
    broken = editors.archive / study.study_uid / study.instances[2].path.name
    foreign = make_study(tmp_path / "foreign", instances=1, study_uid="2.25.88003", transfer_syntax=JPEG_LS)
    broken.write_bytes(foreign.instances[0].path.read_bytes())
    result = await editors.fetch(served)
    # Refused, or cut if images had left before it was seen.
    assert result.status == 502 or not result.complete
