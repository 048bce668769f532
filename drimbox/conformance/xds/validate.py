"""Validating what is sent to the DMP: a publication (TD2.1), a removal (TD3.3c), a METADATA.XML.

The order is that of a receiver: packaging, envelope, assertion, structure of the metadata, attributes,
associations, documents, signature. A fault stops only what cannot be judged without it. Never raises for
what the file contains.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Final

from drimbox.conformance.report import Report
from drimbox.conformance.rules import RuleBook
from drimbox.conformance.xds import attributes, documents, envelope, links, tables, types, xades
from drimbox.conformance.xds.assertion import AssertionFacts, check_assertion
from drimbox.conformance.xds.capture import Capture, open_capture
from drimbox.conformance.xds.rim import RimObject, find_list, read_objects
from drimbox.conformance.xds.xmldsig import Judge
from drimbox.xml import Element

#: Reads the file an XDM URI names (a path below IHE_XDM); None when it is not there.
Folder = Callable[[str], bytes | None]

RULES = RuleBook("submission")
_NO_LIST = RULES.error("list", "SubmitObjectsRequest/RegistryObjectList introuvable", "ITI TF-2 3.41")
_MTOM = RULES.error("mtom", "publication sans MTOM/XOP (multipart/related)", "ITI TF-2 3.41 ; V.3")
_NO_SET = RULES.error("set", "un SubmissionSet (RegistryPackage) attendu, trouvé {count}", "ITI TF-3 4.2.1")
_NO_KOS = RULES.error("kos", "aucune entrée de KOS (typeCode IMG-KOS)", "DB.SO.18 ; CI-SIS IMG-KOS")
_NO_SIGNATURE = RULES.error(
    "signature", "une entrée de signature attendue, trouvé {count}", "CI-SIS Partage de documents"
)
_PATIENTS = RULES.error("patients", "patientId différents d'un objet à l'autre", "ITI TF-3 4.2.1")
_TIMES = RULES.warning(
    "times", "submissionTime différents d'un objet à l'autre", "CI-SIS Partage de documents"
)
_UNIQUE = RULES.error("unique_ids", "le même uniqueId pour plusieurs objets", "ITI TF-3 4.2.3.2")
_COMMON = RULES.error(
    "common", "l'entrée de signature ne répète pas {name} du KOS", "CI-SIS Partage de documents"
)
_SIGNATURE_AUTHOR = RULES.warning(
    "signature_author",
    "entrée de signature : l'auteur attendu est le professionnel",
    "CI-SIS Partage de documents",
)
_VIHF_PATIENT = RULES.error("vihf_patient", "VIHF : resource-id n'est pas le patientId", "CI-SIS VIHF")
_VIHF_STRUCTURE = RULES.error(
    "vihf_structure", "VIHF : Identifiant_Structure n'est pas la structure de l'auteur", "CI-SIS VIHF"
)
_VIHF_DATE = RULES.warning(
    "vihf_date", "VIHF et submissionTime à plus d'un jour l'un de l'autre", "CI-SIS VIHF"
)
_GIVEN = RULES.error("given_kos", "le KOS donné n'est pas celui de la soumission", "ITI TF-3 4.2.3.2.10")

_SIGNATURE_CLASSES: Final = ("urn:oid:1.3.6.1.4.1.19376.1.2.1.1.1",)
_TITLES: Final = {False: "publication dans le DMP (TD2.1)", True: "mise à jour dans le DMP (TD3.3)"}


def validate_xds(
    data: bytes, *, kos: bytes | None = None, folder: Folder | None = None, judge: Judge | None = None
) -> Report:
    """Judge a capture (DB.CS.159; ITI-41, ITI-57, ITI-32).

    `kos` is the manifest sent, for captures without it; `folder` reads the files beside a METADATA.XML,
    and its presence says that this is one; `judge` is another verifier of signatures.
    """
    out = Report(_TITLES[False])
    capture = open_capture(data, out)
    if capture is None:
        return out
    body, update, facts = capture.root, False, None
    enveloped = envelope.is_envelope(capture.root)
    if enveloped:
        opened = envelope.open_envelope(capture.root, capture.action, out)
        if opened is None:
            return out
        body, update = opened.body, opened.update
        if opened.assertion is not None:
            facts = check_assertion(opened.assertion, out, judge)
    if folder is not None or not enveloped:
        out.subject = "METADATA.XML d'une archive XDM"
    elif update:
        out.subject = _TITLES[True]
    holder = find_list(body)
    if holder is None:
        _NO_LIST.broken(out)
        return out
    _Submission(read_objects(holder, out), facts, judge, out).check(
        capture, body, kos, folder, update=update, xdm=folder is not None or not enveloped
    )
    return out


class _Submission:
    """The objects of one submission, by role."""

    def __init__(
        self, objects: list[RimObject], facts: AssertionFacts | None, judge: Judge | None, out: Report
    ) -> None:
        self._out = out
        self._judge = judge
        self._facts = facts
        self._packages = [item for item in objects if item.kind == "RegistryPackage"]
        self._links = [item for item in objects if item.kind == "Association"]
        entries = [item for item in objects if item.kind == "ExtrinsicObject"]
        self._signatures = [item for item in entries if _is_signature(item)]
        self._others = [item for item in entries if not _is_signature(item)]
        several = len(self._others) > 1
        #: Each entry with its name in French.
        self._named = [
            (item, f"entrée KOS n° {rank}" if several else "entrée KOS")
            for rank, item in enumerate(self._others, 1)
        ] + [(item, "entrée de signature") for item in self._signatures]

    def check(
        self,
        capture: Capture,
        body: Element,
        kos: bytes | None,
        folder: Folder | None,
        *,
        update: bool,
        xdm: bool,
    ) -> None:
        """Judge everything, in the order of a receiver."""
        out = self._out
        if len(self._packages) != 1:
            _NO_SET.broken(out, count=len(self._packages))
        for package in self._packages:
            attributes.check_set(package, out)
        for item, where in self._named:
            table = tables.SIGNATURE if item in self._signatures else tables.KOS
            attributes.check_entry(item, table, where, out, update=update)
        self._check_together()
        package_id = self._packages[0].id if self._packages else ""
        if update:
            links.check_update(self._links, package_id, self._others + self._signatures, out)
            return
        if not any(_is_kos(item) for item in self._others):
            _NO_KOS.broken(out)
        ids = [item.id for item, _ in self._named]
        links.check_links(self._links, package_id, ids, [item.id for item in self._signatures], out)
        # An XDM archive of the agency holds no signature: DB.SO.29 asks for none.
        if len(self._signatures) != 1 and not (xdm and not self._signatures):
            _NO_SIGNATURE.broken(out, count=len(self._signatures))
        if capture.framed and capture.parts is None:
            _MTOM.broken(out)
        held = documents.read_documents(body, capture, out)
        if xdm:
            documents.check_uris(self._named, self._signatures, out)
        else:
            documents.check_presence(body, self._named, out)
        self._check_documents(self._complete(held, kos, folder))

    def _complete(
        self, held: dict[str, bytes], kos: bytes | None, folder: Folder | None
    ) -> dict[str, bytes]:
        """Return the documents by entry id, with those that stand beside the capture."""
        found = dict(held)
        for item, _ in self._named:
            uri = documents.uri_of(item) if folder is not None else None
            if folder is not None and uri is not None and item.id not in found:
                data = folder(uri)
                if data is not None:
                    found[item.id] = data
        if kos is not None and self._others:
            first = self._others[0].id
            if first in found and found[first] != kos:
                _GIVEN.broken(self._out)
            found.setdefault(first, kos)
        return found

    def _check_documents(self, held: dict[str, bytes]) -> None:
        out = self._out
        for item, where in self._named:
            data = held.get(item.id)
            documents.check_content(item, data, where, out)
            if data is not None and item in self._others:
                documents.check_kos(item, data, where, out)
        out.facts["documents"] = len(held)
        for item in self._signatures[:1]:
            data = held.get(item.id)
            if data is None:
                continue
            package = self._packages[0] if self._packages else None
            expected = xades.Expected(
                unique_id=item.external(tables.UNIQUE),
                set_id=package.external(tables.SET_UNIQUE) if package is not None else "",
                documents={each.external(tables.UNIQUE): held.get(each.id) for each in self._others},
                structures=frozenset(attributes.structures(item, tables.SIGNATURE)),
            )
            xades.check_signature(data, expected, out, self._judge)

    def _check_together(self) -> None:
        """Judge what the objects must say alike, and the assertion with them."""
        out = self._out
        every = self._packages + self._others + self._signatures
        patients = attributes.same_patient(every)
        if len(patients) > 1:
            _PATIENTS.broken(out)
        times = {item.slot("submissionTime") for item in every} - {""}
        if len(times) > 1:
            _TIMES.broken(out)
        unique = [item.external(tables.UNIQUE) for item in self._others + self._signatures]
        unique += [item.external(tables.SET_UNIQUE) for item in self._packages]
        unique = [uid for uid in unique if uid]
        if len(set(unique)) != len(unique):
            _UNIQUE.broken(out)
        for signature in self._signatures[:1]:
            if self._others:
                self._check_repeated(self._others[0], signature)
            authors = [
                value
                for code in signature.coded(tables.SIGNATURE.author)
                for value in code.slots.get("authorPerson", ())
            ]
            if any(map(types.is_device, authors)):
                _SIGNATURE_AUTHOR.broken(out)
        facts = self._facts
        if facts is None:
            return
        if patients and facts.patient and facts.patient not in patients:
            _VIHF_PATIENT.broken(out)
        structures = set().union(*(attributes.structures(item, tables.SET) for item in self._packages))
        if structures and facts.structure and facts.structure not in structures:
            _VIHF_STRUCTURE.broken(out)
        sent = next((types.instant(time) for time in times), None)
        if sent is not None and facts.issued is not None:
            apart = abs(facts.issued - sent)
            if apart > timedelta(days=1):
                _VIHF_DATE.broken(out)

    def _check_repeated(self, kos: RimObject, signature: RimObject) -> None:
        def codes(item: RimObject, scheme: str) -> list[str | None]:
            return [code.value for code in item.coded(scheme)]

        for name, same in (
            ("legalAuthenticator", kos.slot("legalAuthenticator") == signature.slot("legalAuthenticator")),
            (
                "referenceIdList",
                set(kos.slots.get(tables.REFERENCES, ()))
                == set(signature.slots.get(tables.REFERENCES, ())),
            ),
            (
                "healthcareFacilityTypeCode",
                codes(kos, tables.FACILITY) == codes(signature, tables.FACILITY),
            ),
            ("practiceSettingCode", codes(kos, tables.PRACTICE) == codes(signature, tables.PRACTICE)),
        ):
            if not same:
                _COMMON.broken(self._out, name=name)


def _is_signature(item: RimObject) -> bool:
    values = {code.value for code in item.codes}
    return bool(values & {"E1762", tables.DSIG, *_SIGNATURE_CLASSES})


def _is_kos(item: RimObject) -> bool:
    return any(code.value == "IMG-KOS" for code in item.codes)
