"""The native profile: an archive on the same machine in place of a PACS across the network (DB.SO.165).

`store` is what the editor of an archive writes one class of; `pull` plays that class into the very
receiver that a PACS would send to; `orthanc` is such a class for Orthanc, over its REST interface.
"""
