"""DRIMbox: gateway between a hospital's PACS and the French imaging-sharing network (DRIM-M)."""

__version__ = "0.1.0"
