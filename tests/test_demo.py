"""The demonstration, as `ONCE=1 make demo` plays it, on a smaller study."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.requirement("DB.SO.03", "DB.SO.11", "DB.SO.32", "DB.SO.38", "DB.SO.154")
def test_the_main_job_end_to_end() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "drimbox.sim.demo", "--once", "--instances", "12"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary.pop("first_image_s") > 0
    assert summary.pop("study_s") > 0
    assert summary == {
        "ok": True,
        "kos_published": 1,
        "instances": 12,
        "bytes_identical": True,
        "refusals": {"token": 403, "kos": 404, "whitelist": 401},
    }
