"""Typed configuration: what every key of the TOML file means, its unit and its default.

These classes are pure data. `drimbox.configfile` reads the file, reports every mistake with its path,
and builds them; nobody else parses configuration. Durations are seconds, sizes are bytes; the file may
say `"30s"`, `"5min"`, `"32MiB"`. Paths are absolute once loaded (relative ones are taken from the
folder of the file).
"""

from __future__ import annotations

from pathlib import Path

import attrs


@attrs.frozen
class Appliance:
    """`[drimbox]`: who this gateway is."""

    #: Where the store, the archive, the spool and the whitelist live.
    state_dir: Path
    #: Registry number of the (operator, site) pair, the `349` of `db1.349...` (requirements.md 3.12).
    system_id: str
    name: str = "DRIMbox"
    #: Name of this process among those that share its store.
    node: str = "main"
    manufacturer: str = "DRIMbox"
    #: Root for the UIDs we make; None uses the `2.25` arc.
    uid_root: str | None = None
    #: OID of this instance: XDS sourceId, sender of TD0.2.
    oid: str = "2.25.1"
    #: LPS_ID and LPS_ID_HOMOLOGATION_DMP of the VIHF.
    serial_number: str = ""
    dmp_certification: str = ""
    #: Seconds given to running work at shutdown before connections are closed.
    drain_timeout: float = 30.0


@attrs.frozen
class LogSettings:
    """`[log]`: structured logs, never with patient data."""

    #: "json" (one object a line) or "text".
    format: str = "json"
    #: debug, info, warn or error.
    level: str = "info"
    #: None writes to standard output.
    file: Path | None = None


@attrs.frozen
class StoreSettings:
    """`[store]`: SQLAlchemy URL; None is `sqlite:///<state_dir>/drimbox.db`."""

    url: str | None = None
    #: File that holds the password of a server database, one line; None: `~/.pgpass`, or none.
    password_file: Path | None = None
    #: Threads, and connections, to a server database; SQLite always has one writer.
    threads: int = 4
    #: Seconds after which the work of a node that shows no life goes to the others.
    lease: float = 120.0


@attrs.frozen
class Certificate:
    """A certificate with its chain and its private key: two PEM files, or one PKCS#12 file."""

    certificate: Path | None = None
    key: Path | None = None
    pkcs12: Path | None = None
    #: File that holds the password of the PKCS#12 file, or of the PEM key, one line; None when it has none.
    password_file: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that the pair is made of."""
        named = (self.certificate, self.key, self.pkcs12, self.password_file)
        return tuple(path for path in named if path is not None)


@attrs.frozen
class Hl7TlsSettings:
    """`[hl7.tls]`: MLLP over TLS, in place of MLLP in clear."""

    certificate: Certificate
    #: "none" asks for no client certificate, "optional" verifies one that is shown, "required" demands one.
    client_certificates: str = "none"
    #: PEM file of the authorities of these; None while none is asked for.
    client_roots: Path | None = None
    #: Seconds a handshake may take.
    handshake_timeout: float = 10.0


@attrs.frozen
class Hl7Settings:
    """`[hl7]`: the MLLP listener (DB.SO.03)."""

    host: str = "127.0.0.1"
    port: int = 2575
    max_message_bytes: int = 64 * 1024 * 1024
    #: Bytes of messages in memory, of all connections together.
    max_held_bytes: int = 256 * 1024 * 1024
    max_connections: int = 64
    max_connections_per_address: int = 16
    #: Addresses or networks of the front ends that pass connections on; each begins with a PROXY header.
    front_ends: tuple[str, ...] = ()
    #: Seconds such a header may take.
    front_end_timeout: float = 5.0
    #: Seconds between two messages before we hang up.
    idle_timeout: float = 3600.0
    #: Seconds in which less than 1 KB/s of a message comes, or the peer does not read its answers.
    message_timeout: float = 60.0
    #: Names written in MSH-3/4 of the acknowledgement when the message names no receiver.
    application: str = "DRIMBOX"
    facility: str = ""
    #: What an absent DESTDMP flag means: "error" (E005) or "yes" (interfaces.md 1.4).
    missing_destdmp: str = "error"
    #: Make no KOS when PRT-8 names another structure than the report's signatory: E005.
    check_prt_structure: bool = False
    #: None speaks MLLP in clear.
    tls: Hl7TlsSettings | None = None


@attrs.frozen
class Ris:
    """`[[ris]]`: a system that may send reports (DB.SO.04); found by MSH-3, MSH-4 and address."""

    name: str
    #: MSH-3.1 it announces; None matches any.
    sending_application: str | None = None
    #: MSH-4.1 it announces; None matches any.
    sending_facility: str | None = None
    #: Addresses or networks it may call from; empty is any.
    addresses: tuple[str, ...] = ()


@attrs.frozen
class DicomSettings:
    """`[dicom]`: our side of the DICOM upper layer."""

    host: str = "127.0.0.1"
    port: int = 11112
    #: Our calling AE title, and the called one for C-ECHO.
    ae_title: str = "DRIMBOX"
    #: Largest P-DATA-TF PDU we accept (PS3.8 D.1), bytes.
    max_pdu: int = 131072
    max_associations: int = 64
    #: PS3.8 ARTIM, seconds.
    artim_timeout: float = 10.0
    #: Seconds without a byte on an idle association.
    idle_timeout: float = 60.0
    connect_timeout: float = 10.0


@attrs.frozen
class Pacs:
    """`[site.pacs]`: one PACS (DB.SO.05) and how it must be treated."""

    name: str
    ae_title: str
    host: str
    port: int
    #: AE titles of ours that this PACS knows as move destinations; one C-MOVE each at a time (DB.SO.85).
    pool: tuple[str, ...]
    #: Calling AE titles its C-STORE associations may carry; empty is `ae_title` alone.
    store_ae_titles: tuple[str, ...] = ()
    #: Addresses its C-STORE associations may come from; empty is `host` alone.
    addresses: tuple[str, ...] = ()
    #: Associations we may hold open to it at once (DB.SO.121).
    max_associations: int = 8
    #: "auto" negotiates relational queries, "never" goes series by series.
    relational: str = "auto"
    #: Seconds a C-FIND or C-ECHO may stay without an answer.
    query_timeout: float = 30.0
    #: Seconds from C-MOVE to the first image, and between two images (DB.SO.47: 60 s is typical).
    first_image_timeout: float = 60.0
    gap_timeout: float = 60.0
    #: Absolute ceiling of one C-MOVE, seconds.
    move_ceiling: float = 3600.0
    #: Longest pause we put on its association before reading on into the spool.
    patience: float = 5.0
    #: Quiet seconds before a quarantined AE title is used again when no final answer came.
    quarantine: float = 60.0


@attrs.frozen
class Native:
    """`[site.native]`: an archive on this machine, in place of a PACS (DB.SO.165)."""

    name: str
    #: "orthanc", or "python" for the class of an editor (docs/native.md).
    kind: str
    #: Where it answers; required for Orthanc.
    url: str | None = None
    user: str | None = None
    #: File that holds the password of `user`, one line.
    password_file: Path | None = None
    #: PEM file of the roots of its server certificate; None uses the system's.
    roots: Path | None = None
    #: `package.module:callable` that makes the editor's class.
    factory: str | None = None
    #: A file for that class alone.
    settings: Path | None = None
    #: Seconds it may leave a question, or a reading, without an answer.
    timeout: float = 30.0
    #: Absolute ceiling of the reading of one series, seconds.
    ceiling: float = 3600.0
    #: Longest pause put on a reading before going on into the spool.
    patience: float = 5.0
    #: Instances of one delivery read at once, and of all of them.
    parallel: int = 4
    max_readings: int = 32
    #: Seconds between two looks for changed studies (DB.SO.27).
    poll: float = 30.0


@attrs.frozen
class SpeedTestSettings:
    """`[site.speedtest]`: the throughput and latency test of a PACS (DB.SO.102, DB.SO.155)."""

    #: StudyInstanceUID of the reference study that this PACS holds; None: the test cannot run.
    study: str | None = None
    #: Run by itself every `period` seconds; on demand it runs in any case.
    enabled: bool = False
    period: float = 3600.0


@attrs.frozen
class SiteResyncSettings:
    """`[site.resync]`: how the link with the archive of one site is verified (DB.SO.28)."""

    #: StudyInstanceUID that it always holds; None: some study that the walk has just found.
    control_study: str | None = None


@attrs.frozen
class Listener:
    """`[admin]`: a listening address, and who may call there."""

    host: str
    port: int
    #: Pair of the listener, for HTTPS; None listens in clear.
    certificate: Certificate | None = None
    #: File of the accounts (`drimbox accounts`); None asks nobody, which belongs on the loop.
    accounts: Path | None = None


@attrs.frozen
class Structure:
    """`[[structure]]`: a situation d'exercice with its ORG_AUTH_CLI and ORG_SIGN pairs."""

    #: National identifier (Struct_IdNat).
    id: str
    name: str
    authentication: Certificate
    signature: Certificate
    #: Internal identifier of this structure in the gateway (audit 3.8.1); default: its national one.
    internal_id: str = ""


@attrs.frozen
class Site:
    """`[[site]]`: one PACS or native archive with its pair of FQDN (DB.SO.173, requirements.md 3.12)."""

    name: str
    #: `db1.349.mesimagesmedicales.fr`
    wado_fqdn: str
    #: `vi1.349.mesimagesmedicales.fr`
    viewer_fqdn: str
    #: None when the images are in a native archive.
    pacs: Pacs | None
    #: SSL_SERV pair of the WADO FQDN (DB.SO.90).
    wado_certificate: Certificate
    #: Market pair of the viewer FQDN; None while no viewer is served.
    viewer_certificate: Certificate | None = None
    #: Names of the `[[ris]]` whose studies may be here; empty is all.
    ris: tuple[str, ...] = ()
    #: Ids of the `[[structure]]` that work here; empty is all.
    structures: tuple[str, ...] = ()
    #: (0040,E011) of the manifests; None leaves it out.
    retrieve_location_uid: str | None = None
    #: Deliver nothing whose patient identifier is not the KOS's: E1006 (DB.SO.134).
    check_identity: bool = False
    #: Publish nothing whose patient identifier in the PACS is not the report's: E001 (DB.SO.16).
    check_feed_identity: bool = False
    #: Publish nothing whose birth date in the PACS is not the report's: E001 (DB.SO.191).
    check_feed_birth_date: bool = False
    #: Both checks: what the PACS does not tell is a mismatch too.
    check_feed_strictly: bool = False
    #: Write the INS traits of the KOS into every instance delivered (DB.SO.39).
    insert_traits: bool = False
    #: Roots of SOP Instance UIDs that stay inside: left out of KOS and deliveries (DB.SO.199, 200).
    excluded_uid_roots: tuple[str, ...] = ()
    #: List the IOCM rejection notes that the PACS keeps in its studies (interfaces.md 3.2).
    list_rejection_notes: bool = False
    speedtest: SpeedTestSettings = SpeedTestSettings()
    resync: SiteResyncSettings = SiteResyncSettings()
    #: None when the images are in a PACS.
    native: Native | None = None

    @property
    def archive(self) -> str:
        """Name of what holds its images, PACS or native archive."""
        holder = self.pacs or self.native
        assert holder is not None, "the configuration has one of the two"
        return holder.name


@attrs.frozen
class WadoSettings:
    """`[wado]`: the mTLS listener and the limits of deliveries (DB.SO.35)."""

    host: str = "127.0.0.1"
    port: int = 8443
    #: Path prefixes served before `studies/...`; the first is the one written in RetrieveURL.
    prefixes: tuple[str, ...] = ("dicom-web-rs", "wado-rs")
    #: Port written in RetrieveURL when it is not 443 (tests, demonstrations); None leaves it out.
    public_port: int | None = None
    #: Deliveries running at once; never under 3 (DB.SO.35).
    max_deliveries: int = 16
    #: Of these, for one Consumer.
    max_per_consumer: int = 8
    #: Requests that may wait for their turn, half of them of one Consumer; 0 refuses at once.
    max_waiting: int = 64
    #: Seconds a request may wait, for its turn and for an AE title together, before E1003.
    queue_timeout: float = 20.0
    #: Bytes of one delivery held in memory.
    window: int = 8 * 1024 * 1024
    #: Bytes of all deliveries held in memory.
    total_window: int = 128 * 1024 * 1024
    #: Bytes one delivery, and all of them, may hold in the spool; 0 switches the spool off.
    spool: int = 2 * 1024 * 1024 * 1024
    total_spool: int = 8 * 1024 * 1024 * 1024
    #: Seconds a client may read less than 1 KB/s of what waits for it.
    stall_timeout: float = 60.0
    #: Seconds one answer may take in all, however its client reads.
    delivery_ceiling: float = 4 * 3600.0
    handshake_timeout: float = 10.0
    header_timeout: float = 15.0
    max_connections: int = 256
    #: Of these, to viewer names, which ask for no client certificate: they take nothing from the images.
    max_viewer_connections: int = 64
    max_connections_per_address: int = 64
    #: Connections a second that one address may open in the long run, and at once.
    connection_rate: float = 20.0
    connection_burst: int = 100
    #: Addresses or networks of the front ends that pass connections on; each begins with a PROXY header.
    front_ends: tuple[str, ...] = ()
    #: Seconds such a header may take.
    front_end_timeout: float = 5.0
    #: Seconds between two requests on one connection.
    idle_timeout: float = 60.0
    #: StudyInstanceUID served without KOS check (DB.SO.38 note); None for none.
    reference_study: str | None = None
    #: Key-image option: single instances may be asked for (DB.SO.195).
    instance_level: bool = False
    #: Status of E1105, the answer without that option (decisions.md).
    instance_level_status: int = 415


@attrs.frozen
class HealthSettings:
    """`[health]`: who may ask the viewer names for the state of the gateway (DB.SO.182, DB.SO.183)."""

    #: Addresses or networks that may ask; those of the list are added.
    addresses: tuple[str, ...] = ()
    #: File that holds the list of the probes' addresses; read again every few minutes.
    addresses_file: Path | None = None
    #: Where that list is published; not both.
    addresses_url: str | None = None
    #: PEM file of the roots of that server's certificate; None uses the system's.
    addresses_url_roots: Path | None = None
    #: Seconds between two fetches of the list.
    addresses_period: float = 86400.0
    #: Only the lines of the list that hold one of these texts count; empty is all.
    regions: tuple[str, ...] = ()
    #: Seconds an answer is good for, whoever asks.
    keep: float = 5.0
    #: Seconds a PACS may leave a C-ECHO without an answer before it counts as down.
    pacs_timeout: float = 5.0
    #: Give an answer that says DOWN the HTTP status 503, not 200 (decisions.md).
    down_is_503: bool = False


@attrs.frozen
class CacheSettings:
    """`[cache]`: series kept on disk as the PACS sent them (DB.SO.40)."""

    #: Off, nothing is kept and what an earlier run kept is removed at start.
    enabled: bool = False
    #: Folder of the cache; None is `<state_dir>/cache`.
    folder: Path | None = None
    #: Bytes all series may take.
    max_bytes: int = 50 * 1024 * 1024 * 1024
    #: Seconds a series is kept after it came from the PACS, however often it is asked for.
    max_age: float = 7 * 86400.0
    #: Series kept at once; the one asked for longest ago goes first.
    max_series: int = 20000
    #: Bytes of its disk the cache leaves free.
    min_free: int = 5 * 1024 * 1024 * 1024


@attrs.frozen
class HomologationSettings:
    """`[homologation]`: KOS loaded by hand for test sessions (requirements.md 2.23)."""

    #: Off, none can be loaded and those loaded before are not answered for.
    enabled: bool = False


@attrs.frozen
class TranscodingSettings:
    """`[transcoding]`: images held in a syntax that the client did not list (DB.CS.83)."""

    #: Worker processes; 0 is one for each core, four at most.
    workers: int = 0
    #: Seconds one instance may take, before its worker is killed; also of processor time.
    timeout: float = 60.0
    #: Bytes one worker may allocate beyond what it needs at rest.
    memory: int = 2 * 1024 * 1024 * 1024
    #: Longest data set transcoded, bytes; longer ones leave only as they are.
    max_instance_bytes: int = 512 * 1024 * 1024
    #: Longest decoded pixel data, bytes.
    max_decoded_bytes: int = 1024 * 1024 * 1024
    #: Instances that may wait for a worker, and their bytes in all.
    max_queue: int = 256
    max_queue_bytes: int = 512 * 1024 * 1024
    #: Quality of JPEG baseline, 1 to 100.
    jpeg_quality: int = 95
    #: Compression ratio of lossy JPEG 2000, over the bits stored.
    jpeg2000_ratio: int = 10


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


@attrs.frozen
class FeedSettings:
    """`[feed]`: from report to KOS."""

    #: Studies worked on at once.
    parallel: int = 2
    #: First and longest wait between two tries while a PACS is silent, or after a failure, seconds.
    retry_first: float = 10.0
    retry_max: float = 900.0
    #: Unforeseen failures in a row, of any step from message to DMP, after which a row is parked.
    max_failures: int = 10


@attrs.frozen
class MailSettings:
    """`[notifications.mail]`: notices by e-mail, through the relay of the structure (DB.SO.21)."""

    host: str
    sender: str
    recipients: tuple[str, ...]
    port: int = 587
    #: "starttls", "tls" (from the first byte), or "none" for a relay on this machine.
    security: str = "starttls"
    user: str | None = None
    #: File that holds the password of `user`, one line.
    password_file: Path | None = None
    #: PEM file of the roots of the relay's certificate; None uses the system's.
    roots: Path | None = None
    #: Least severity that is sent.
    severity: str = "attention"
    #: Seconds one mail may take in all.
    timeout: float = 20.0


@attrs.frozen
class WebhookSettings:
    """`[notifications.webhook]`: notices by HTTPS POST of JSON (DB.SO.21)."""

    url: str
    #: PEM file of the roots of the server's certificate; None uses the system's.
    roots: Path | None = None
    #: File that holds a bearer token, one line; None sends none.
    token_file: Path | None = None
    severity: str = "attention"
    #: Seconds one request may take in all.
    timeout: float = 10.0


@attrs.frozen
class NotificationSettings:
    """`[notifications]`: notices to the administrator (DB.SO.21)."""

    #: Least seconds between two digests by one channel.
    interval: float = 900.0
    #: First and longest wait after a digest that could not be delivered, seconds.
    retry_first: float = 30.0
    retry_max: float = 3600.0
    #: Seconds an acknowledged notice is kept.
    keep: float = 365 * 86400.0
    #: None sends no mail, and no request.
    mail: MailSettings | None = None
    webhook: WebhookSettings | None = None


@attrs.frozen
class ResyncSettings:
    """`[resync]`: walks over the archive of KOS (DB.SO.28, DB.SO.31)."""

    #: Hours of the day, local time, in which a walk may work: "22:00-05:00"; empty is any time.
    hours: tuple[str, ...] = ()
    #: Studies a second, and at once.
    rate: float = 10.0
    parallel: int = 2
    #: Part of the studies judged that may be withdrawn without an administrator's word.
    max_removed_share: float = 0.05
    #: As many may always be, however small the archive.
    max_removed: int = 5


@attrs.frozen
class AtnaSettings:
    """`[audit.atna]`: every event sent on to an audit repository, syslog over TLS (DB.CS.96)."""

    host: str
    #: PEM file of the roots of its certificate.
    roots: Path
    #: What we show it: both sides prove who they are (IHE ITI-19).
    client: Certificate
    port: int = 6514
    #: Events of one session at most: so many may come twice when its end is not known.
    batch: int = 100
    #: Seconds between two looks for events to send.
    period: float = 5.0
    #: Seconds one session may take in all.
    timeout: float = 30.0
    #: First and longest wait after a session that was not confirmed, seconds.
    retry_first: float = 5.0
    retry_max: float = 300.0
    #: Seconds the oldest event may wait before the administrator is told.
    late: float = 3600.0
    #: A session counts only when the repository ends it by TLS too (RFC 5425 4.4): nobody else can.
    require_close_notify: bool = True
    #: Private enterprise number (IANA) under which each message names its event; None leaves that out.
    enterprise_number: int | None = None


@attrs.frozen
class AuditSettings:
    """`[audit]`: the audit trail (DB.CS.06)."""

    #: Seconds an event is kept; None keeps all of them for ever.
    keep: float | None = None
    #: None sends nothing.
    atna: AtnaSettings | None = None


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


@attrs.frozen
class DoctorSettings:
    """`[doctor]`: what `drimbox doctor` holds the machine against."""

    #: Bytes that every disk we write to must have free.
    min_free: int = 1024 * 1024 * 1024
    #: Seconds one examination may take in all.
    ceiling: float = 600.0


@attrs.frozen
class Config:
    """The whole file."""

    drimbox: Appliance
    sites: tuple[Site, ...]
    ris: tuple[Ris, ...]
    structures: tuple[Structure, ...]
    trust: TrustSettings
    dmp: DmpSettings
    psc: PscSettings
    log: LogSettings = LogSettings()
    admin: Listener = Listener("127.0.0.1", 9349)
    store: StoreSettings = StoreSettings()
    hl7: Hl7Settings = Hl7Settings()
    dicom: DicomSettings = DicomSettings()
    wado: WadoSettings = WadoSettings()
    health: HealthSettings = HealthSettings()
    transcoding: TranscodingSettings = TranscodingSettings()
    cache: CacheSettings = CacheSettings()
    homologation: HomologationSettings = HomologationSettings()
    feed: FeedSettings = FeedSettings()
    notifications: NotificationSettings = NotificationSettings()
    resync: ResyncSettings = ResyncSettings()
    audit: AuditSettings = AuditSettings()
    doctor: DoctorSettings = DoctorSettings()
    #: None where everything outside is reached straight.
    proxy: ProxySettings | None = None

    @property
    def store_url(self) -> str:
        """SQLAlchemy URL of the store."""
        return self.store.url or f"sqlite:///{self.drimbox.state_dir / 'drimbox.db'}"
