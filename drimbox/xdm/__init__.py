"""The archive as files: months of published manifests on removable media (requirements.md 3.11, IHE XDM).

Written for DB.SO.29, read for DB.SO.30 in the dialects of every maker (interfaces.md 5).
"""
