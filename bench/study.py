"""The studies of the bench, made once and kept under `bench/data/` (git-ignored)."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import attrs
import cattrs
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless

from bench.plan import Plan
from drimbox.sim import slices, studies
from drimbox.sim.studies import GeneratedStudy, derived_uid, make_study

DATA = Path(__file__).parent / "data"
#: A tiny instance: this many rows and columns of 16 bits are 20 KB.
TINY_EDGE = 100


@attrs.frozen
class Studies:
    """What the PACS hold; each study is one series of CT."""

    #: The reference study (DB.SO.100): 512 x 512, JPEG-LS lossless, about 160 KB an instance.
    reference: GeneratedStudy
    #: The same slices, fewer and more.
    small: GeneratedStudy
    large: GeneratedStudy
    #: The same slices, for a slow client and for transcoding.
    slow: GeneratedStudy
    #: Many small native instances.
    tiny: GeneratedStudy


def make_studies(plan: Plan, *, data: Path = DATA) -> Studies:
    """Return the studies of a plan, from the cache when the generator that made them is the present one."""
    return Studies(
        reference=reference_study(plan.instances, data=data),
        small=_compressed("small", plan.small, data),
        large=_compressed("large", plan.large, data),
        slow=_compressed("slow", plan.slow_instances, data),
        tiny=kept_study(
            f"tiny-{plan.tiny}",
            data,
            instances=plan.tiny,
            rows=TINY_EDGE,
            columns=TINY_EDGE,
            transfer_syntax=str(ExplicitVRLittleEndian),
        ),
    )


def reference_study(instances: int, *, data: Path = DATA) -> GeneratedStudy:
    """Return the reference study, with as many instances (the same slices as `make_reference_study`)."""
    return _compressed("reference", instances, data)


def _compressed(name: str, instances: int, data: Path) -> GeneratedStudy:
    return kept_study(
        f"{name}-{instances}",
        data,
        instances=instances,
        rows=512,
        columns=512,
        transfer_syntax=str(JPEGLSLossless),
        distinct=32,
    )


def kept_study(name: str, data: Path = DATA, **arguments: Any) -> GeneratedStudy:
    """Return the study of these arguments (of `make_study`), made or found under `data`/`name`."""
    folder = data / name
    manifest = folder / "manifest.json"
    converter = cattrs.Converter()
    converter.register_unstructure_hook(Path, str)
    converter.register_structure_hook(Path, lambda value, _: Path(value))
    made_with = {"generator": _generator(), "arguments": arguments, "folder": str(folder.resolve())}
    try:
        kept = json.loads(manifest.read_text())
        if kept["made_with"] == made_with:
            study = converter.structure(kept["study"], GeneratedStudy)
            if study.size == kept["size"]:
                return study
    except (OSError, ValueError, KeyError):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    study = make_study(folder.resolve(), study_uid=derived_uid("bench", name), **arguments)
    kept = {"made_with": made_with, "size": study.size, "study": converter.unstructure(study)}
    manifest.write_text(json.dumps(kept))
    return study


def _generator() -> str:
    sources = (Path(module.__file__ or "").read_bytes() for module in (slices, studies))
    return hashlib.sha256(b"".join(sources)).hexdigest()
