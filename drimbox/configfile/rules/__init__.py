"""The kinds of values of the configuration file: durations, sizes, ports, names, UIDs, AE titles ...

A `Rule` turns a TOML value into the typed value of `drimbox.config`, or raises `Rejected` with the
problem and the way to mend it, in French. Rules know one value at a time: which key obeys which rule is
in `keys`, what two keys say together in `sense`, what a path leads to in `paths`. Nothing here reads a
file, a clock or a socket.
"""

from __future__ import annotations

from drimbox.configfile.rules.addresses import (
    fqdn,
    host,
    https_url,
    is_address,
    is_host_name,
    listen_address,
    mail_address,
    network,
    origin,
    port,
)
from drimbox.configfile.rules.identifiers import ae_title, aead_suites, distinguished_name, store_url, uid
from drimbox.configfile.rules.quantities import (
    DAY,
    GIB,
    HOUR,
    KIB,
    MIB,
    MINUTE,
    amount,
    duration,
    integer,
    number,
    size,
    span,
)
from drimbox.configfile.rules.values import Rejected, Rule, closest, show
from drimbox.configfile.rules.words import boolean, choice, path, pattern, several, text

__all__ = [
    "DAY",
    "GIB",
    "HOUR",
    "KIB",
    "MIB",
    "MINUTE",
    "Rejected",
    "Rule",
    "ae_title",
    "aead_suites",
    "amount",
    "boolean",
    "choice",
    "closest",
    "distinguished_name",
    "duration",
    "fqdn",
    "host",
    "https_url",
    "integer",
    "is_address",
    "is_host_name",
    "listen_address",
    "mail_address",
    "network",
    "number",
    "origin",
    "path",
    "pattern",
    "port",
    "several",
    "show",
    "size",
    "span",
    "store_url",
    "text",
    "uid",
]
