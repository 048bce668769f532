"""A receiver that asks the data set itself whose it is, as a delivery does."""

from __future__ import annotations

from typing import Any

from drimbox.dicom.dimse import Command, Status
from drimbox.dicom.elements import DatasetRefused
from drimbox.dicom.moving import Channel
from drimbox.dicom.pdu import Buffer
from drimbox.dicom.scan import HeaderScanner
from drimbox.sim.studies import GeneratedStudy
from tests.dicom.box import Box, Sink, reactor


class Wary(Sink):
    """Keeps only what its own data set says belongs to the series, as a delivery does."""

    def __init__(self, study: GeneratedStudy, number: int = 0) -> None:
        series = study.series[number]
        super().__init__(due={each.sop_instance_uid for each in series.instances})
        self.study_uid, self.series_uid = study.study_uid, series.series_uid
        self.scanners: dict[Channel, HeaderScanner] = {}
        self.refused: list[str] = []

    def store(self, channel: Channel, command: Command, transfer_syntax: str) -> None:
        super().store(channel, command, transfer_syntax)
        self.scanners[channel] = HeaderScanner(transfer_syntax)

    def data(self, channel: Channel, piece: Buffer, last: bool) -> None:
        self.last_activity = reactor.seconds()
        command, data = self.current[channel]
        data += piece
        if not last:
            return
        del self.current[channel]
        scanner = self.scanners.pop(channel)
        try:
            header = scanner.feed(bytes(data)) or scanner.finish()
        except DatasetRefused:
            channel.respond(command, Status.CANNOT_UNDERSTAND)
            return
        if (header.study_uid, header.series_uid) != (self.study_uid, self.series_uid):
            self.refused.append(command.affected_instance or "")
            channel.respond(command, Status.NOT_AUTHORISED)
            return
        self.whole.append((command, bytes(data)))
        channel.respond(command, self.status)


class Holding(Wary):
    """Does not answer the last instance."""

    def __init__(self, study: GeneratedStudy) -> None:
        super().__init__(study)
        self.held: list[tuple[Channel, Command]] = []

    def data(self, channel: Channel, piece: Buffer, last: bool) -> None:
        if len(self.whole) < len(self.due) - 1:
            super().data(channel, piece, last)
        elif last:
            self.held.append((channel, self.current[channel][0]))


async def moved(box: Box, receiver: Wary, *, wait: float = 5) -> Any:
    return await box.retrieval(receiver).run(receiver.study_uid, receiver.series_uid, wait=wait)
