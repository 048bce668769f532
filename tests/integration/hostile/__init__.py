"""Attacks on a running gateway, by row of the threat model: beside ordinary traffic, and counted.

An attack is a function of a `Target`, a generator of chance and the address it calls from. It says what
must not happen by an assertion; being refused, cut or reset (`OSError`) is what should happen.
"""
