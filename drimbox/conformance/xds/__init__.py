"""Judging what is sent to the DMP: TD2.1 and TD3.3c messages, and the METADATA.XML of an XDM archive.

Everything here reads the bytes with code of its own (`drimbox.xml.safe_parse` excepted, the one XML
parser): the gateway writes such messages with `drimbox.xds`, and a validator that shared its readers or
its tables would find no fault of them.
"""
