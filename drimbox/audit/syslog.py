"""An audit event as a syslog message (RFC 5424) in the frame of syslog over TLS (RFC 5425).

The same event always gives the same bytes, whenever it is sent and by whatever process: header time is that
of the event, and there is no process number. A repository that gets an event twice can tell by comparing;
with an enterprise number the structured data names the event too, by its number and its hash in the trail.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from datetime import UTC, datetime

import attrs

from drimbox.audit.atna import to_xml
from drimbox.ports import AuditEvent

#: Facility 10 (security), severity 5 (normal but significant): interfaces.md 11.4.
_PRIORITY = 85
_NOT_PRINTABLE = re.compile(r"[^\x21-\x7e]+")


def frame(message: bytes) -> bytes:
    """Put a message in its frame: length in octets, blank, message (RFC 5425 4.3)."""
    return b"%d %s" % (len(message), message)


@attrs.frozen
class SyslogFormat:
    """Writes the messages of one gateway."""

    #: Its DNS name, its product name, and its AuditSourceID.
    host: str
    application: str
    source_id: str
    #: Private enterprise number of the vendor (IANA); None leaves the structured data empty.
    enterprise_number: int | None = None

    def message(self, number: int, link: str, instant: datetime, event: AuditEvent) -> bytes:
        """Return the message of the event with this number and this hash in the trail."""
        when = instant.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        # What IHE defines, and what is DICOM's alone.
        kind = "DICOM+RFC3881" if event.event_type[1] == "DCM" else "IHE+RFC-3881"
        data = "-"
        if self.enterprise_number is not None:
            data = f'[event@{self.enterprise_number} number="{number}" hash="{link}"]'
        host, application = _name(self.host, 255), _name(self.application, 48)
        head = f"<{_PRIORITY}>1 {when} {host} {application} - {kind} {data} "
        return head.encode("ascii") + BOM_UTF8 + to_xml(event, instant, self.source_id)


def _name(text: str, longest: int) -> str:
    """Return a name as a header field carries it (RFC 5424 6): printable ASCII without blanks."""
    return _NOT_PRINTABLE.sub("_", text)[:longest] or "-"
