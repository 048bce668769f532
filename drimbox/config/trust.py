"""Who is believed: authorities, whitelist, revocation."""

from __future__ import annotations

from pathlib import Path

import attrs


@attrs.frozen
class TrustSettings:
    """`[trust]`: IGC-Santé roots and the whitelist (DB.SO.111, 154; DB.CS.151)."""

    #: PEM file of the roots (and intermediates) that issue SSL_SERV certificates.
    consumer_roots: Path
    #: Signed whitelist as ANS publishes it, kept unaltered (DB.CS.148).
    whitelist: Path
    #: PEM file of the roots (and intermediates) of the whitelist signer.
    whitelist_roots: Path
    #: Of these authorities, those that may sign for Consumers: by name (RFC 4514), and by a PEM file of
    #: their certificates; without either, all of them.
    consumer_issuers: tuple[str, ...] = ()
    consumer_issuer_certificates: Path | None = None
    #: Refuse a client certificate whose extended key usage does not say clientAuth, or says nothing.
    require_client_usage: bool = True
    whitelist_cn: str = "Liste Blanche DRIM-M PROD"
    whitelist_ou: str = "318751275100020"
    #: Where the list is published (DB.CS.147); None reads only the file above.
    whitelist_url: str | None = None
    #: PEM file of the roots of that server's certificate; None uses the system's.
    whitelist_url_roots: Path | None = None
    #: Seconds between two fetches, give or take a twentieth.
    whitelist_period: float = 86400.0
    #: Seconds one fetch may take.
    whitelist_timeout: float = 30.0
    #: Seconds without a list after which the administrator is told (DB.CS.186).
    whitelist_silence: float = 2 * 86400.0
    #: Where the revocation lists of the authorities of `consumer_roots` are published (DB.SO.111); without
    #: any, revocation is not checked.
    crl_urls: tuple[str, ...] = ()
    #: Without a current list of its issuer a peer is refused ("hard") or let in and counted ("soft").
    crl_policy: str = "hard"
    #: Longest time between two fetches of a list, seconds, one fetch, and its bytes.
    crl_period: float = 6 * 3600.0
    crl_timeout: float = 60.0
    crl_max_bytes: int = 64 * 1024 * 1024
    #: Ask OCSP responders about Consumers, after the handshake: "off", "hard" (no answer: refused) or
    #: "soft" (no answer: let in, counted and audited).
    ocsp: str = "off"
    #: The responder; None takes the address that the certificate names, if its host is one of `ocsp_hosts`.
    ocsp_url: str | None = None
    #: The same for the authorities between a Consumer and the root; of one without any, nothing is asked.
    ocsp_authorities_url: str | None = None
    #: `host` or `host:port`.
    ocsp_hosts: tuple[str, ...] = ()
    #: Seconds one question may take; longest time an answer is kept; bytes of an answer.
    ocsp_timeout: float = 5.0
    ocsp_cache_time: float = 3600.0
    ocsp_max_bytes: int = 65536
    #: Refuse answers without our nonce, those made in advance.
    ocsp_require_nonce: bool = False
    #: TLS 1.2 suites; 1.3 ones are OpenSSL's own (all AEAD).
    ciphers: str = (
        "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384"
        ":ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256"
    )
    #: Start although no good whitelist exists (all image requests are then refused).
    start_without_whitelist: bool = False
