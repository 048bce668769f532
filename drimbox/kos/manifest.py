"""Building the manifest of a study: the DICOM key object the national record keeps (DB.SO.18).

One manifest points to one study: it says who the patient is and which orders the study answers, as the
*report* has them (DB.SO.105), which series and instances the *PACS* holds, and at which address each
series can be fetched. It is never edited: every change makes a new object with a new SOPInstanceUID.
The layout is that of interfaces.md 3.1 to 3.4, attribute by attribute.

Identifiers (INS, accession and order numbers, UIDs, the structure's) are written as they came, whatever
their length; `remarks` names those that break a limit of DICOM, for the log. Free text is fitted to its
VR by `values.Fitter`. pydicom writes the root; `references` the lists that grow with the study.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from pydicom import config as pydicom_config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from drimbox.config import Appliance, Site, Structure, WadoSettings
from drimbox.dicom.elements import EXPLICIT_LITTLE
from drimbox.dicom.part10 import file_preamble
from drimbox.kos import references
from drimbox.kos.reading import KOS_SOP_CLASS, KeyImage
from drimbox.kos.values import MAX_LO, Fitter, clean, date, time
from drimbox.model import Patient, Report, RequestIds, Series, Study

#: Number of the manifest's series in the samples; it only has to be a number.
_SERIES_NUMBER: Final = 59
_NIA_OID: Final = "1.2.250.1.213.1.4.9"
#: XON: the identifier is component 10 of the institution's name.
_XON_GAP: Final = "^" * 9
_MAX_SH: Final = 16


def retrieve_base(site: Site, wado: WadoSettings) -> str:
    """Return what stands before `/studies/...` in the RetrieveURL of this site (interfaces.md 6.1)."""
    port = "" if wado.public_port in (None, 443) else f":{wado.public_port}"
    return f"https://{site.wado_fqdn}{port}/{wado.prefixes[0].strip('/')}"


def remarks(report: Report, structure: Structure) -> tuple[str, ...]:
    """Say, without any value, which identifiers break a limit of DICOM; they are written all the same."""
    found = []
    if any(len(pair.accession.value) > _MAX_SH or "\\" in pair.accession.value for pair in report.requests):
        found.append(
            "numéro d'accession hors des limites DICOM (16 caractères, sans barre oblique inverse)"
        )
    if any(len(pair.order.value) > MAX_LO or "\\" in pair.order.value for pair in report.requests):
        found.append("numéro de demande hors des limites DICOM (64 caractères, sans barre oblique inverse)")
    if len(structure.id) + len(_XON_GAP) > MAX_LO:
        found.append("identifiant de structure trop long pour InstitutionName (64 caractères)")
    return tuple(found)


def build_manifest(
    *,
    report: Report,
    study: Study,
    site: Site,
    structure: Structure,
    wado: WadoSettings,
    appliance: Appliance,
    sop_instance_uid: str,
    series_uid: str,
    created: datetime,
    key_images: Mapping[str, Sequence[KeyImage]] | None = None,
) -> bytes:
    """Make the manifest of `study` as a Part 10 file in Explicit VR Little Endian (DB.SO.18).

    `created` carries its time zone: dates, times and (0008,0201) are written in it. `key_images` gives,
    by SOPInstanceUID, the key image notes that cite an instance (interfaces.md 3.4). Raises `ValueError`
    when the study holds no instance (there is nothing to point to) or `created` has no zone.
    """
    if created.utcoffset() is None:
        raise ValueError("the instant of creation needs a time zone")
    series = references.ordered(each for each in study.series if each.instances)
    if not series:
        raise ValueError("a manifest needs at least one instance")
    key_images = key_images or {}
    text = _description(report, study, series)
    fit = Fitter(_texts(report, study, structure, appliance, text, key_images))
    ds = Dataset()
    _add(ds, 0x00080005, "CS", fit.character_set)
    _add(ds, 0x00080016, "UI", KOS_SOP_CLASS)
    _add(ds, 0x00080018, "UI", sop_instance_uid)
    _add_instants(ds, study, created)
    _add(ds, 0x00080050, "SH", "")
    _add(ds, 0x00080060, "CS", "KO")
    _add(ds, 0x00080070, "LO", fit.long_string(appliance.manufacturer))
    _add(ds, 0x00080080, "LO", _institution(structure, fit))
    _add(ds, 0x00080090, "PN", "")
    _add(ds, 0x00081030, "LO", fit.long_string(study.description))
    _add(ds, 0x00081111, "SQ", [])
    _add_patient(ds, report.patient, fit)
    _add(ds, 0x0020000D, "UI", study.study_uid)
    _add(ds, 0x0020000E, "UI", series_uid)
    _add(ds, 0x00200010, "SH", "")
    _add(ds, 0x00200011, "IS", _SERIES_NUMBER)
    _add(ds, 0x00200013, "IS", 1)
    _add(ds, 0x0040A040, "CS", "CONTAINER")
    _add(ds, 0x0040A043, "SQ", [_title()])
    _add(ds, 0x0040A050, "CS", "SEPARATE")
    _add(ds, 0x0040A370, "SQ", [_request(pair, study.study_uid) for pair in report.requests])
    root = DicomBytesIO()
    root.is_little_endian, root.is_implicit_VR = True, False
    write_dataset(root, ds)
    return b"".join(
        (
            file_preamble(KOS_SOP_CLASS, sop_instance_uid, EXPLICIT_LITTLE),
            root.getvalue(),
            # From here on in ascending tags: evidence, template (TID 2010 of PS3.16), content tree.
            references.evidence(
                study.study_uid,
                series,
                base=f"{retrieve_base(site, wado)}/studies/{study.study_uid}/series/",
                location_uid=site.retrieve_location_uid,
                key_images=key_images,
                codec=fit.codec,
            ),
            references.sequence(
                0x0040A504,
                [
                    references.element(0x00080105, b"CS", b"DCMR")
                    + references.element(0x0040DB00, b"CS", b"2010")
                ],
            ),
            references.content(series, text.encode(fit.codec)),
        )
    )


def _texts(
    report: Report,
    study: Study,
    structure: Structure,
    appliance: Appliance,
    text: str,
    key_images: Mapping[str, Sequence[KeyImage]],
) -> list[str]:
    """List every text whose bytes depend on the character set, as it is written but for its length."""
    patient = report.patient
    texts = [study.description, structure.name, appliance.manufacturer, patient.birth_place]
    texts += [patient.family, patient.given, patient.given_list, patient.used_family, patient.used_given]
    texts = [text, structure.id, patient.ins] + [clean(each) for each in texts]
    for pair in report.requests:
        texts += [pair.accession.value, pair.order.value]
    for notes in key_images.values():
        texts += [note.description for note in notes]
    return texts


def _add(ds: Dataset, tag: int, vr: str, value: Any) -> None:
    # pydicom would warn about an identifier longer than its VR allows, which we write knowingly.
    ds.add(DataElement(tag, vr, value, validation_mode=pydicom_config.IGNORE))


def _add_instants(ds: Dataset, study: Study, created: datetime) -> None:
    day, hour = created.strftime("%Y%m%d"), created.strftime("%H%M%S")
    _add(ds, 0x00080020, "DA", date(study.date))
    _add(ds, 0x00080030, "TM", time(study.time))
    for tag in (0x00080012, 0x00080021, 0x00080023):
        _add(ds, tag, "DA", day)
    for tag in (0x00080013, 0x00080031, 0x00080033):
        _add(ds, tag, "TM", hour)
    _add(ds, 0x00080201, "SH", created.strftime("%z")[:5])


def _title() -> Dataset:
    item = Dataset()
    _add(item, 0x00080100, "SH", "113030")
    _add(item, 0x00080102, "SH", "DCM")
    _add(item, 0x00080104, "LO", "MANIFEST")
    return item


def _authority(oid: str) -> list[Dataset]:
    item = Dataset()
    _add(item, 0x00400032, "UT", oid)
    _add(item, 0x00400033, "CS", "ISO")
    return [item]


def _institution(structure: Structure, fit: Fitter) -> str:
    identifier = _XON_GAP + structure.id
    return fit.long_string(structure.name.replace("^", " "), MAX_LO - len(identifier)) + identifier


def _add_patient(ds: Dataset, patient: Patient, fit: Fitter) -> None:
    issuer = "ASIP-SANTE-INS-NIA" if patient.ins_oid == _NIA_OID else "ASIP-SANTE-INS-NIR"
    _add(ds, 0x00100010, "PN", fit.person_name(patient.family, patient.given))
    _add(ds, 0x00100020, "LO", patient.ins)
    _add(ds, 0x00100021, "LO", issuer)
    _add(ds, 0x00100024, "SQ", _authority(patient.ins_oid))
    _add(ds, 0x00100030, "DA", date(patient.birth_date))
    _add(ds, 0x00100040, "CS", patient.sex if patient.sex in ("M", "F", "O") else "")
    # The used name is told from the list of given names by standing second.
    names = [fit.given_list(patient.given_list or patient.given)]
    used = fit.person_name(patient.used_family, patient.used_given)
    if used:
        names.append(used)
    if any(names):
        _add(ds, 0x00101001, "PN", names)
    ins = Dataset()
    _add(ins, 0x00100020, "LO", patient.ins)
    _add(ins, 0x00100021, "LO", issuer)
    _add(ins, 0x00100022, "CS", "TEXT")
    _add(ins, 0x00100024, "SQ", _authority(patient.ins_oid))
    _add(ds, 0x00101002, "SQ", [ins])
    if patient.birth_place:
        _add(ds, 0x00104000, "LT", clean(patient.birth_place))


def _request(pair: RequestIds, study_uid: str) -> Dataset:
    item = Dataset()
    _add(item, 0x00080050, "SH", pair.accession.value)
    _add(item, 0x00080051, "SQ", _authority(pair.accession.authority))
    _add(item, 0x00081110, "SQ", [])
    _add(item, 0x0020000D, "UI", study_uid)
    _add(item, 0x00321060, "LO", "")
    _add(item, 0x00321064, "SQ", [])
    _add(item, 0x00400026, "SQ", _authority(pair.order.authority))
    _add(item, 0x00401001, "SH", "")
    _add(item, 0x00402016, "LO", pair.order.value)
    _add(item, 0x00402017, "LO", "")
    return item


def _description(report: Report, study: Study, series: Sequence[Series]) -> str:
    """Write the text a Consumer shows series by series (interfaces.md 3.3); every line ends with LF."""
    acts = [clean(act.description) for act in report.acts if act.study_uid == study.study_uid]
    lines = [f"Examen : {clean(study.description)}"]
    known = list(dict.fromkeys(act for act in acts if act))
    if known:
        lines.append(f"Acte = {', '.join(known)}")
    lines += [
        f"Série-{each.series_uid} : {clean(each.modality)} @ : {clean(each.description)}" for each in series
    ]
    return "".join(f"{line}\n" for line in lines)
