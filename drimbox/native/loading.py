"""Makes the native archive of a site from its configuration."""

from __future__ import annotations

import importlib
from typing import Any

from twisted.web.iweb import IPolicyForHTTPS

from drimbox.config import Native
from drimbox.native.archive import NativeArchive
from drimbox.native.http import Client, Origin
from drimbox.native.orthanc import OrthancStore, read_password
from drimbox.native.store import ImageStore, InThread, Surroundings

#: Longest wait for a connection to the archive, seconds; it is on this machine, or near.
_CONNECT = 10.0


class NativeUnusable(Exception):
    """The native archive of a site cannot be made; the text says why, in French."""


def open_archive(
    site: str, settings: Native, reactor: Any, in_thread: InThread, policy: IPolicyForHTTPS
) -> NativeArchive:
    """Make the archive of `site`; nothing is asked of it yet. `policy` proves the name of an https one.

    Raises `NativeUnusable`.
    """
    if settings.kind == "orthanc":
        store = _orthanc(settings, reactor, in_thread, policy)
    else:
        store = _made(Surroundings(site, settings, reactor, in_thread))
    return NativeArchive(store, settings, reactor)


def _orthanc(settings: Native, reactor: Any, in_thread: InThread, policy: IPolicyForHTTPS) -> ImageStore:
    client = Client(
        Origin.of(settings.url or ""),
        reactor,
        connect_timeout=min(settings.timeout, _CONNECT),
        policy=policy,
        authorization=lambda: read_password(settings.user, settings.password_file),
    )
    return OrthancStore(client, in_thread)


def _made(surroundings: Surroundings) -> ImageStore:
    """Call the factory of an editor's class."""
    named = surroundings.settings.factory or ""
    module, _, name = named.partition(":")
    where = f"site {surroundings.site}, {named}"
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise NativeUnusable(f"{where} : introuvable ({error})") from error
    store = factory(surroundings)
    if not isinstance(store, ImageStore):
        raise NativeUnusable(f"{where} : n'a pas rendu un drimbox.native.store.ImageStore")
    return store
