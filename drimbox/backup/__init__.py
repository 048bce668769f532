"""Backup and restore (DB.SO.24): one file that an empty machine can be started from.

`making` takes a consistent copy of the store beside the running gateway, `container` writes and verifies
the file, `sealing` encrypts it (age), `restoring` puts it in place and has the gateway ask before it sends.
"""
