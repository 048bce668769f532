"""The reference study, made once and kept under `bench/data/` (git-ignored)."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import cattrs

from drimbox.sim import slices, studies
from drimbox.sim.studies import REFERENCE_INSTANCES, GeneratedStudy, make_reference_study

DATA = Path(__file__).parent / "data"


def reference_study(instances: int = REFERENCE_INSTANCES, *, data: Path = DATA) -> GeneratedStudy:
    """Return the reference study, from the cache when the generator that made it is the present one."""
    folder = data / f"reference-{instances}"
    manifest = folder / "manifest.json"
    converter = cattrs.Converter()
    converter.register_unstructure_hook(Path, str)
    converter.register_structure_hook(Path, lambda value, _: Path(value))
    try:
        kept = json.loads(manifest.read_text())
        if kept["generator"] == _generator():
            study = converter.structure(kept["study"], GeneratedStudy)
            if study.size == kept["size"]:
                return study
    except (OSError, ValueError, KeyError):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    study = make_reference_study(folder.resolve(), instances=instances)
    kept = {"generator": _generator(), "size": study.size, "study": converter.unstructure(study)}
    manifest.write_text(json.dumps(kept))
    return study


def _generator() -> str:
    sources = (Path(module.__file__ or "").read_bytes() for module in (slices, studies))
    return hashlib.sha256(b"".join(sources)).hexdigest()
