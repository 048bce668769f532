"""Why the system refused something, in French: its own words are those of the locale, English as a rule."""

from __future__ import annotations

import errno
import os

_REASONS = {
    errno.ENOENT: "introuvable",
    errno.ENOTDIR: "introuvable : un de ses dossiers est un fichier",
    errno.EACCES: "accès refusé à ce compte par les droits du fichier ou d'un de ses dossiers",
    errno.EPERM: "opération non permise à ce compte",
    errno.EISDIR: "c'est un dossier et non un fichier",
    errno.EEXIST: "existe déjà",
    errno.EINVAL: "ce n'est pas un fichier ordinaire",
    errno.ELOOP: "c'est un lien symbolique, ou il y en a trop",
    errno.ENAMETOOLONG: "chemin trop long",
    errno.ENOSPC: "disque plein",
    errno.EDQUOT: "quota de disque épuisé",
    errno.EROFS: "système de fichiers en lecture seule",
    errno.EFBIG: "fichier trop grand pour ce disque",
    errno.EIO: "erreur d'entrée-sortie du disque",
    errno.EBUSY: "occupé par un autre programme",
    errno.ESTALE: "partage réseau perdu",
    errno.EMFILE: "trop de fichiers ouverts par ce programme",
    errno.ENFILE: "trop de fichiers ouverts sur cette machine",
    errno.ENOMEM: "mémoire insuffisante",
    errno.EADDRINUSE: "port déjà pris par un autre programme",
    errno.EADDRNOTAVAIL: "cette adresse n'est pas de cette machine",
    errno.ECONNREFUSED: "connexion refusée",
    errno.ECONNRESET: "connexion coupée par l'autre côté",
    errno.EPIPE: "connexion coupée par l'autre côté",
    errno.ENETUNREACH: "réseau inaccessible",
    errno.EHOSTUNREACH: "aucune route vers cette machine",
    errno.ETIMEDOUT: "pas de réponse dans le délai",
}


def system_reason(error: OSError) -> str:
    """Say in French why the system refused; an error that is not in the table, by its symbol and number.

    What our own code raised in the words of an operator stays as it is.
    """
    number = error.errno or 0
    if number < 0:  # those of getaddrinfo
        return "nom introuvable"
    if error.strerror and error.strerror != os.strerror(number):
        return error.strerror
    if number in _REASONS:
        return _REASONS[number]
    return f"erreur du système {errno.errorcode.get(number, '')} {number}".replace("  ", " ")
