"""Does the PACS hold this patient's images? Asked before a manifest is made, by option of the site.

DB.SO.16 compares identifiers, as a delivery does (`identity`): the INS when the PACS tells one, else the
IPP of the message. DB.SO.191 compares the birth date with the report's. Everything the PACS said in its
answer to C-FIND is held against the report, instance by instance where it answers so: one image of
another patient is enough to publish nothing.

Silence is no mismatch: most PACS return no INS, some no birth date, and a study must not stay out of the
record for that. A site may decide otherwise (`check_feed_strictly`). An INS is never demanded where an IPP
is told, nor an authority where there is a value.

The manifest that the DMP holds of the study already is left as it is. Who of the RIS and the PACS is wrong
is for people to find out; withdrawing at a slip of the RIS would take right images away from a patient,
and the images of a wrong one are kept back at delivery (DB.SO.134). The notice says that it is there.
"""

from __future__ import annotations

from drimbox.config import Site
from drimbox.errors import PatientMismatch
from drimbox.model import Report, StatedPatient, Study
from drimbox.source.identity import Difference, difference

_REFUSALS = {
    Difference.INS: "l'INS donné par le PACS n'est pas celui du compte rendu",
    Difference.IPP: "l'IPP donné par le PACS n'est pas celui du message",
    Difference.AUTHORITY: "l'IPP donné par le PACS vient d'une autre autorité que celui du message",
    Difference.NOTHING_TOLD: "le PACS ne donne aucun identifiant du patient",
}


def check_patient(site: Site, study: Study, report: Report) -> None:
    """Let the study be published, or raise `PatientMismatch` (E001) (DB.SO.16, DB.SO.191).

    The error's text names the PACS and no value of anybody.
    """
    for stated in study.stated_patients:
        problem = _problem(site, stated, report)
        if problem:
            raise PatientMismatch(f"{problem} ({site.archive}) ; rien n'est publié ni retiré du DMP")


def _problem(site: Site, stated: StatedPatient, report: Report) -> str:
    """Say in French what is wrong with one statement, or nothing."""
    found = None
    if site.check_feed_identity:
        found = _difference(stated, report, strictly=site.check_feed_strictly)
    if found is not None:
        return _REFUSALS[found]
    return _birth_date_problem(site, stated, report) if site.check_feed_birth_date else ""


def _difference(stated: StatedPatient, report: Report, *, strictly: bool) -> Difference | None:
    if not stated.ins and stated.patient_id is None:
        # Whether or not the report itself tells an IPP: one taken over from an archive may not.
        return Difference.NOTHING_TOLD if strictly else None
    return difference(stated, report.patient, report.ipp)


def _birth_date_problem(site: Site, stated: StatedPatient, report: Report) -> str:
    # ACR-NEMA wrote 1984.07.01, and PS3.5 6.2 lets it be read; the report's TS may go on with a time.
    told, wanted = stated.birth_date.replace(".", ""), report.patient.birth_date[:8]
    if told and wanted:
        return (
            ""
            if told == wanted
            else "la date de naissance donnée par le PACS n'est pas celle du compte rendu"
        )
    if not site.check_feed_strictly:
        return ""
    silent = "le PACS" if not told else "le compte rendu"
    return f"{silent} ne donne pas la date de naissance"
