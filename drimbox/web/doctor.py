"""The admin routes of `drimbox doctor`: begin an examination, and read what it finds as it goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from drimbox.model import is_uid
from drimbox.web.access import Note
from drimbox.web.admin import AdminApi, AdminCall, AdminProblem, Reply


class Doctor(Protocol):
    """Runs examinations (`doctor.runner.Doctor`)."""

    def start(self, study: str, send: bool) -> tuple[int, bool]:
        """Begin one, or join the one on its way: its number, and whether it was joined.

        With `send`, test messages leave.
        """

    def state(self) -> Mapping[str, Any]:
        """Return how far the last one is."""


def register(api: AdminApi, doctor: Doctor, note: Note) -> None:
    """Add the routes to the admin listener."""

    async def post_start(call: AdminCall) -> Reply:
        study = call.body.get("study", "")
        if not isinstance(study, str) or (study and not is_uid(study)):
            raise AdminProblem(400, "study : StudyInstanceUID attendu")
        send = call.body.get("send", False)
        if not isinstance(send, bool):
            raise AdminProblem(400, "send : vrai ou faux attendu")
        await note("Examen des liaisons, avec messages d'essai" if send else "Examen des liaisons", study)
        number, joined = doctor.start(study, send)
        return Reply({"number": number, "joined": joined}, status=202)

    async def get_state(_: AdminCall) -> object:
        return doctor.state()

    api.register("POST", "/doctor", post_start)
    api.register("GET", "/doctor", get_state)
