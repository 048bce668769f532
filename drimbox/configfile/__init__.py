"""The configuration file: read, judged, and told of its mistakes (see `reading`)."""

from __future__ import annotations

from drimbox.configfile.reading import ConfigErrors, admin_listener, check, load
from drimbox.configfile.report import ConfigMistake
from drimbox.configfile.shape import keys_of

__all__ = ["ConfigErrors", "ConfigMistake", "admin_listener", "check", "keys_of", "load"]
