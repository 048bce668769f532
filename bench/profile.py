"""`python -m bench.profile`: where the gateway's time goes while it delivers, to `results/profile.json`.

Two looks at the same thing, deliveries of the reference study from `dcmqrscp` one after the other:
- from below, by the kernel's sampler (`perf record`, when it is installed and allowed): which library
  the processor was in, kernel included;
- from inside, by cProfile in the gateway: which function, and how often for one image. Its own cost weighs
  on every call, so shares of what makes many small calls come out too large; counts are exact.

The first says what would be won by a faster interpreter or other system calls, the second where in the
code to look.
"""

from __future__ import annotations

import json
import pstats
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import attrs

from bench.gateway import Gateway
from bench.machine import describe
from bench.pipeline import deliver
from bench.plan import QUICK, Plan
from bench.results import Results
from bench.site import Site, open_site
from bench.study import DATA, make_studies

PROFILE = Path(__file__).parent / "results" / "profile.json"
#: Deliveries under each profiler.
_DELIVERIES = 5
#: Functions named in the result.
_MOST = 25
#: Libraries by what they are, in the words of the result.
_KINDS = (
    (r"libpython|^python", "Python interpreter"),
    (r"kernel|vdso", "kernel (TCP, epoll)"),
    (r"_rust|libssl|libcrypto", "OpenSSL (TLS)"),
    (r"libc\.|ld-linux", "C library (copies, memory)"),
    (r"\.cpython-|_cffi", "C modules of Python (struct, socket, cffi)"),
)

#: What pstats keeps of each function: primitive calls, calls, own seconds, seconds, callers.
Profile = dict[tuple[str, int, str], tuple[int, int, float, float, Any]]


def main() -> None:
    """Profile and write the result."""
    quick = "--quick" in sys.argv[1:]
    plan = attrs.evolve(QUICK, instances=(QUICK if quick else Plan()).instances)
    folder = Path(tempfile.mkdtemp(prefix="profile-", dir=DATA))
    try:
        with open_site("dcmqrscp", folder, make_studies(plan), plan, Results()) as site:
            document = {
                "machine": describe(),
                "instances": plan.instances,
                "native": _native(site),
                "python": _python(site),
            }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    PROFILE.parent.mkdir(parents=True, exist_ok=True)
    PROFILE.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    print(f"profil dans {PROFILE}")


def _native(site: Site) -> dict[str, Any]:
    """Sample the gateway process from outside; `{"why"}` when that is not possible."""
    perf = shutil.which("perf")
    if perf is None:
        return {"why": "perf absent (paquet linux-perf)"}
    data = site.folder / "perf.data"
    with Gateway(site.folder / "native", site.pacs, port=site.gateway_port, pool=site.pool) as gateway:
        deliver(site, gateway, site.study)
        sampler = subprocess.Popen(
            [perf, "record", "-e", "cpu-clock", "-F", "2000", "-o", str(data), "-p", str(gateway.pid)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(0.5)
        for _ in range(_DELIVERIES):
            deliver(site, gateway, site.study)
        sampler.send_signal(signal.SIGINT)
        sampler.wait(60)
    report = subprocess.run(
        [perf, "report", "-i", str(data), "--no-children", "--sort", "dso", "--stdio"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return {"shares": library_shares(report.stdout)} if report.returncode == 0 else {"why": report.stderr}


def library_shares(report: str) -> dict[str, float]:
    """Read the shares by library that `perf report --sort dso` prints, as fractions by kind."""
    shares: dict[str, float] = {}
    for percent, library in re.findall(r"^\s*(\d+\.\d+)%\s+(\S+)", report, re.MULTILINE):
        kind = next((kind for pattern, kind in _KINDS if re.search(pattern, library)), "other")
        shares[kind] = shares.get(kind, 0.0) + float(percent) / 100
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _python(site: Site) -> dict[str, Any]:
    """Run the gateway under cProfile, once for one delivery and once for more, and take the difference.

    So what starting and publishing cost is left out.
    """
    few, many = _profiled(site, 1), _profiled(site, 1 + _DELIVERIES)
    return functions(few, many, _DELIVERIES * len(site.study.instances))


def _profiled(site: Site, deliveries: int) -> Profile:
    file = site.folder / f"profile-{deliveries}"
    options = (f"--profile={file}", "--profiler=cprofile", "--savestats")
    with Gateway(
        site.folder / f"stand-{deliveries}",
        site.pacs,
        port=site.gateway_port,
        pool=site.pool,
        options=options,
    ) as gateway:
        for _ in range(deliveries):
            deliver(site, gateway, site.study)
    stats: Profile = pstats.Stats(str(file)).stats  # type: ignore[attr-defined]
    return stats


def functions(few: Profile, many: Profile, images: int) -> dict[str, Any]:
    """Return what `many` has over `few`: the functions that took most time themselves, of the time worked.

    Each with its share and its calls per image.
    """
    worked: dict[tuple[str, int, str], tuple[int, float]] = {}
    for key, row in many.items():
        # Waiting for something to happen is no work.
        if "'poll' of 'select.epoll'" not in key[2]:
            before = few.get(key, (0, 0, 0.0, 0.0, None))
            worked[key] = row[1] - before[1], max(0.0, row[2] - before[2])
    total = sum(seconds for _, seconds in worked.values())
    most = sorted(worked.items(), key=lambda item: -item[1][1])[:_MOST]
    return {
        "calls_per_image": sum(calls for calls, _ in worked.values()) / images,
        "functions": [
            {"name": _name(*key), "share": seconds / total, "calls_per_image": calls / images}
            for key, (calls, seconds) in most
        ],
    }


def _name(file: str, line: int, function: str) -> str:
    if not line:
        return function.strip("<>{}")
    module = re.sub(r"^.*/(site-packages|lib/python3\.\d+)/", "", file)
    module = re.sub(r"^.*/(drimbox/)", r"\1", module).removesuffix(".py").replace("/", ".")
    return f"{module}.{function}"


if __name__ == "__main__":
    main()
