"""What is called outside: the DMP, Pro Santé Connect, and the proxy on the way there."""

from __future__ import annotations

from pathlib import Path

import attrs

from drimbox.config.pairs import Certificate


@attrs.frozen
class DmpSettings:
    """`[dmp]`: the national record (interfaces.md 4)."""

    #: `https://lps2.dmp.gouv.fr`; `/si-dmp-server/v2/services/...` is added.
    base_url: str
    #: PEM file of the roots that issue the DMP's server certificate.
    roots: Path
    path: str = "/si-dmp-server/v2/services"
    connect_timeout: float = 10.0
    #: Seconds one attempt may take in all.
    timeout: float = 60.0
    #: Seconds a connection stays open between two questions; 0 for a new one each.
    keep_alive: float = 3.0
    max_response_bytes: int = 16 * 1024 * 1024
    #: "P" production, "D" test (TD0.2 processingCode).
    processing_code: str = "P"
    vihf_version: str = "3.0"
    #: "sha256" or "sha1" for XAdES and VIHF (decisions.md).
    digest: str = "sha256"
    #: Version of XAdES of the signature document: "1.1.1" or "1.3.2".
    xades_version: str = "1.1.1"
    #: Author of submission set and KOS entry: "device" or "professional" (interfaces.md 4.2).
    author: str = "device"
    #: CX-4 authority of the StudyInstanceUID in referenceIdList (decisions.md: sample literal).
    study_uid_authority: str = "1.2.3.4.5.6"
    #: Write submissionTime and creationTime in "utc" or "local" time.
    times: str = "utc"
    #: sourcePatientId carries "ins" or "ipp".
    source_patient_id: str = "ins"
    #: First and longest wait between two attempts, seconds.
    retry_first: float = 5.0
    retry_max: float = 1800.0
    #: Submissions sent at once.
    parallel: int = 2


@attrs.frozen
class PscSettings:
    """`[psc]`: token introspection through the e-Santé proxy (interfaces.md 7.4)."""

    introspection_url: str
    client_id: str
    #: File that holds the client secret, one line.
    client_secret_file: Path
    #: PEM file of the roots of the proxy's server certificate; None uses the system's.
    roots: Path | None = None
    #: Client certificate for a proxy that asks for one; None presents none.
    certificate: Certificate | None = None
    #: Seconds one question may take in all, its repetitions with it.
    timeout: float = 5.0
    #: Times a question is asked again when the proxy cannot be reached, breaks off or answers 5xx.
    retries: int = 1
    max_response_bytes: int = 65536
    #: Accepted values of `aud`; empty leaves it unchecked.
    audience: tuple[str, ...] = ()
    #: Seconds by which the issuer's clock may differ from ours.
    clock_skew: float = 10.0
    #: Refuse a token behind which no professional is named.
    require_professional: bool = True
    #: Seconds for which a positive answer counts again for the same Consumer; 0 asks each time.
    cache_time: float = 0.0
    #: Answers remembered at once.
    cache_entries: int = 1000


#: What is called outside, by the name of `[proxy] uses`.
DESTINATIONS = ("dmp", "psc", "whitelist", "crl", "ocsp", "webhook", "probes")


@attrs.frozen
class ProxySettings:
    """`[proxy]`: the hospital's CONNECT proxy, for outbound HTTPS."""

    #: `http://proxy.exemple.fr:3128`
    url: str
    user: str | None = None
    #: File that holds the password of `user`, one line.
    password_file: Path | None = None
    #: Names, domains, addresses or networks that are reached without it.
    no_proxy: tuple[str, ...] = ()
    #: What goes through it.
    uses: tuple[str, ...] = DESTINATIONS
