"""The national record (DMP): what the Source sends to it and how it reads the answers.

Cores (no socket, no clock, no reactor): `ebrim` and `hl7types` are the building blocks, `codes` the closed
lists, `metadata` the submission, `signature` and `vihf` the two signed documents, `mime` and `soap` the
envelopes, `queries` the questions, `answers` the reading, `outcomes` the decision of interfaces.md 4.9.
`client` is the only module that knows Twisted.
"""
