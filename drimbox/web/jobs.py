"""What the admin routes of long works share: a POST begins one, a GET says how far it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drimbox.source.jobs import JobBusy, Jobs, Work
from drimbox.web.access import Note
from drimbox.web.admin import AdminProblem, Reply


async def begin(jobs: Jobs, note: Note, kind: str, action: str, subject: str, work: Work) -> Reply:
    """Note what was asked for, begin it, and answer with its number; `AdminProblem` 409 when one runs."""
    try:
        jobs.require_idle()
        await note(action, subject)
        job = jobs.start(kind, work)
    except JobBusy as busy:
        raise AdminProblem(409, str(busy)) from None
    return Reply({"job": job.number}, status=202)


def shown(jobs: Jobs) -> Mapping[str, Any]:
    """Return what is shown of the last work: `job`, None before the first."""
    job = jobs.last
    if job is None:
        return {"job": None}
    return {
        "job": {
            "number": job.number,
            "kind": job.kind,
            "running": job.running,
            "started": job.started_at,
            "ended": job.ended_at,
            "stage": job.progress.stage,
            "done": job.progress.done,
            "total": job.progress.total,
            "result": job.result,
            "error": job.error,
        }
    }
