"""Pro Santé Connect without its sockets: token, introspection and userinfo (interfaces.md 7.2 to 7.4).

`PscService` holds clients, professionals and opaque random tokens, and answers strictly: client
authentication (Basic or form), each form field once, RFC 7662 for introspection. Paths are those of the
real issuer below any base; `mint` is the tests' shortcut past the login. The clock is given, never read.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote_plus, urlencode

import attrs

REALM = "/auth/realms/esante-wallet"
CONNECT = f"{REALM}/protocol/openid-connect"
TOKEN = f"{CONNECT}/token"
INTROSPECT = f"{CONNECT}/token/introspect"
USERINFO = f"{CONNECT}/userinfo"
AUTHORIZE = "/auth"


@attrs.frozen
class Activity:
    """One place where a professional works: a situation d'exercice."""

    structure: str
    name: str = "CABINET Y"
    sector: str = "SA07"


@attrs.frozen
class Professional:
    """Who may log in; `id` is `8` + RPPS."""

    id: str = "899700000001"
    family: str = "DURAND"
    given: str = "PAUL"
    profession: str = "10"
    speciality: str = "SM26"
    activities: tuple[Activity, ...] = (Activity("499700000001006"),)

    @property
    def subject(self) -> str:
        """The `sub` claim: `f:<uuid>:<national id>`, the same at each login."""
        digest = hashlib.sha256(self.id.encode()).hexdigest()
        return f"f:{digest[:8]}-{digest[8:12]}-4{digest[13:16]}-8{digest[17:20]}-{digest[20:32]}:{self.id}"


@attrs.frozen
class _Grant:
    """What a token or code stands for."""

    kind: str  # "access", "refresh" or "code"
    professional: Professional
    client: str
    issued: float
    expires: float
    redirect_uri: str = ""
    challenge: str = ""


@attrs.frozen
class PscRequest:
    """One HTTP request as the service sees it."""

    method: str
    path: str
    query: str
    authorization: str
    content_type: str
    body: bytes = attrs.field(repr=False)


@attrs.frozen
class PscAnswer:
    """One HTTP answer."""

    status: int
    content: Mapping[str, Any] | None = None
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def body(self) -> bytes:
        """The JSON, empty when there is none."""
        return b"" if self.content is None else json.dumps(self.content).encode()


class _Refused(Exception):
    def __init__(self, status: int, error: str, text: str = "") -> None:
        super().__init__(error)
        self.answer = PscAnswer(
            status,
            {"error": error, "error_description": text},
            (("WWW-Authenticate", 'Basic realm="psc"'),) if status == 401 else (),
        )


@attrs.define
class PscService:
    """The issuer's memory and rules; the clock is given (Unix seconds)."""

    #: client_id to client_secret.
    clients: dict[str, str] = attrs.field(factory=lambda: {"drimbox": "secret"}, repr=False)
    #: By national id; the first logs in at the authorization endpoint.
    professionals: dict[str, Professional] = attrs.field(
        factory=lambda: {Professional().id: Professional()}
    )
    access_life: float = 120.0
    refresh_life: float = 1800.0
    #: Add `Secteur`-like structure claims to introspection answers (the real one does not).
    with_structure: bool = False
    #: `aud` of introspection answers (the published sample has none).
    audience: tuple[str, ...] = ()
    #: (endpoint, outcome) of the last requests; never a token.
    exchanges: deque[tuple[str, str]] = attrs.field(factory=lambda: deque(maxlen=10_000))
    _grants: dict[str, _Grant] = attrs.field(factory=dict, repr=False)

    def mint(
        self,
        now: float,
        professional: Professional | None = None,
        *,
        client: str = "drimbox",
        life: float | None = None,
    ) -> str:
        """Return a good access token without any login; a negative `life` makes it expired."""
        who = professional or next(iter(self.professionals.values()))
        return self._grant("access", who, client, now, self.access_life if life is None else life)

    def revoke(self, token: str) -> None:
        """Make a token unknown."""
        self._grants.pop(token, None)

    def handle(self, request: PscRequest, now: float) -> PscAnswer:
        """Answer one request."""
        routes: dict[tuple[str, str], Callable[[PscRequest, float], PscAnswer]] = {
            ("GET", AUTHORIZE): self._authorize,
            ("POST", TOKEN): self._token,
            ("POST", INTROSPECT): self._introspect,
            ("GET", USERINFO): self._userinfo,
            ("POST", USERINFO): self._userinfo,
        }
        route = routes.get((request.method, request.path))
        if route is None:
            known = request.path in {path for _, path in routes}
            return PscAnswer(405 if known else 404, {"error": "not_found"})
        try:
            answer = route(request, now)
        except _Refused as refusal:
            answer = refusal.answer
        outcome = (answer.content or {}).get("error") or (answer.content or {}).get("active", "ok")
        self.exchanges.append((endpoint_of(request.path), str(outcome)))
        return answer

    def _grant(
        self,
        kind: str,
        professional: Professional,
        client: str,
        now: float,
        life: float,
        redirect_uri: str = "",
        challenge: str = "",
    ) -> str:
        token = secrets.token_urlsafe(48)
        grant = _Grant(kind, professional, client, now, now + life, redirect_uri, challenge)
        self._grants[token] = grant
        return token

    def _authorize(self, request: PscRequest, now: float) -> PscAnswer:
        """Log the first professional in at once (`login_hint` chooses another)."""
        asked = _pairs(request.query)
        uri = asked.get("redirect_uri", "")
        if asked.get("client_id") not in self.clients or not uri.startswith("https://"):
            raise _Refused(400, "invalid_request", "client_id or redirect_uri")
        for name, due in (("response_type", "code"), ("acr_values", "eidas1")):
            if asked.get(name) != due:
                raise _Refused(400, "invalid_request", name)
        if "openid" not in asked.get("scope", "").split() or not asked.get("state"):
            raise _Refused(400, "invalid_request", "scope or state")
        if asked.get("code_challenge_method", "S256") != "S256":
            raise _Refused(400, "invalid_request", "code_challenge_method")
        hint = asked.get("login_hint") or next(iter(self.professionals))
        if hint not in self.professionals:
            raise _Refused(400, "access_denied", "unknown professional")
        challenge = asked.get("code_challenge", "")
        code = self._grant("code", self.professionals[hint], asked["client_id"], now, 60.0, uri, challenge)
        values = {"state": asked["state"], "code": code, "session_state": secrets.token_hex(16)}
        mark = "&" if "?" in uri else "?"
        return PscAnswer(302, None, (("Location", f"{uri}{mark}{urlencode(values)}"),))

    def _token(self, request: PscRequest, now: float) -> PscAnswer:
        form = _form(request)
        client = self._client(request, form)
        kind = {"authorization_code": "code", "refresh_token": "refresh"}.get(form.get("grant_type", ""))
        if kind is None:
            raise _Refused(400, "unsupported_grant_type")
        presented = form.get("code" if kind == "code" else "refresh_token", "")
        # Codes and refresh tokens serve once.
        grant = self._grants.get(presented)
        if grant is None or grant.kind != kind or grant.client != client or grant.expires <= now:
            raise _Refused(400, "invalid_grant")
        if kind == "code":
            if form.get("redirect_uri") != grant.redirect_uri:
                raise _Refused(400, "invalid_grant", "redirect_uri")
            if grant.challenge and not _pkce(grant.challenge, form.get("code_verifier", "")):
                raise _Refused(400, "invalid_grant", "code_verifier")
        del self._grants[presented]
        who = grant.professional
        return PscAnswer(
            200,
            {
                "access_token": self._grant("access", who, client, now, self.access_life),
                "expires_in": int(self.access_life),
                "refresh_token": self._grant("refresh", who, client, now, self.refresh_life),
                "refresh_expires_in": int(self.refresh_life),
                "token_type": "Bearer",
                "session_state": secrets.token_hex(16),
                "scope": "openid scope_all",
            },
        )

    def _introspect(self, request: PscRequest, now: float) -> PscAnswer:
        form = _form(request)
        self._client(request, form, basic=True)
        if not form.get("token"):
            raise _Refused(400, "invalid_request", "token")
        grant = self._grants.get(form["token"])
        if grant is None or grant.kind != "access" or grant.expires <= now:
            return PscAnswer(200, {"active": False})
        who = grant.professional
        content: dict[str, Any] = {
            "active": True,
            "sub": who.subject,
            "preferred_username": who.id,
            "exp": int(grant.expires),
            "iat": int(grant.issued),
            "client_id": grant.client,
            "azp": grant.client,
            "scope": "openid scope_all",
            "acr": "eidas1",
            "typ": "Bearer",
        }
        if self.audience:
            content["aud"] = list(self.audience)
        if self.with_structure and who.activities:
            content["SubjectOrganizationID"] = who.activities[0].structure
        return PscAnswer(200, content)

    def _userinfo(self, request: PscRequest, now: float) -> PscAnswer:
        scheme, _, token = request.authorization.partition(" ")
        grant = self._grants.get(token.strip())
        if scheme.lower() != "bearer" or grant is None or grant.kind != "access" or grant.expires <= now:
            return PscAnswer(
                401, {"error": "invalid_token"}, (("WWW-Authenticate", 'Bearer error="invalid_token"'),)
            )
        return PscAnswer(200, userinfo(grant.professional))

    def _client(self, request: PscRequest, form: Mapping[str, str], *, basic: bool = False) -> str:
        """Return the authenticated client; introspection takes Basic only (interfaces.md 7.4)."""
        scheme, _, value = request.authorization.partition(" ")
        if scheme.lower() == "basic":
            try:
                decoded = base64.b64decode(value.strip(), validate=True).decode("utf-8")
            except (binascii.Error, UnicodeDecodeError):
                raise _Refused(401, "invalid_client") from None
            # RFC 6749 2.3.1: both halves are form-encoded before they are joined.
            name, colon, secret = (unquote_plus(half) for half in decoded.partition(":"))
            if not colon:
                raise _Refused(401, "invalid_client")
        elif basic:
            raise _Refused(401, "invalid_client")
        else:
            name, secret = form.get("client_id", ""), form.get("client_secret", "")
        expected = self.clients.get(name)
        if expected is None or not hmac.compare_digest(expected.encode(), secret.encode()):
            raise _Refused(401, "invalid_client")
        return name


def _pairs(text: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), max_num_fields=50)
    except ValueError:
        raise _Refused(400, "invalid_request", "form") from None
    if len({name for name, _ in pairs}) != len(pairs):
        raise _Refused(400, "invalid_request", "field given twice")
    return dict(pairs)


def _form(request: PscRequest) -> dict[str, str]:
    if request.content_type.partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        raise _Refused(400, "invalid_request", "Content-Type")
    try:
        return _pairs(request.body.decode("ascii"))
    except UnicodeDecodeError:
        raise _Refused(400, "invalid_request", "form") from None


def _pkce(challenge: str, verifier: str) -> bool:
    digest = hashlib.sha256(verifier.encode()).digest()
    return hmac.compare_digest(base64.urlsafe_b64encode(digest).rstrip(b"=").decode(), challenge)


def endpoint_of(path: str) -> str:
    """Return the name of an endpoint, as behaviours and exchanges use it."""
    names = {TOKEN: "token", INTROSPECT: "introspection", USERINFO: "userinfo", AUTHORIZE: "authorize"}
    return names.get(path, "")


def userinfo(who: Professional) -> dict[str, Any]:
    """Return the userinfo of interfaces.md 7.3."""
    first = who.activities[0] if who.activities else Activity("", "")
    return {
        "Secteur_Activite": f"{first.sector}^1.2.250.1.71.4.2.4",
        "sub": who.subject,
        "email_verified": False,
        "SubjectOrganization": first.name,
        "SubjectOrganizationID": first.structure,
        "SubjectNameID": who.id,
        "SubjectRole": [f"{who.profession}^1.2.250.1.213.1.1.5.5"],
        "preferred_username": who.id,
        "given_name": who.given,
        "family_name": who.family,
        "UITVersion": "1.0",
        "Palier_Authentification": "APPPRIP3^1.2.250.1.213.1.5.1.1.1",
        "Mode_Acces_Raison": "",
        "otherIds": [{"identifiant": who.id, "origine": "RPPS", "qualite": 1}],
        "SubjectRefPro": {
            "codeCivilite": "M",
            "exercices": [
                {
                    "codeProfession": who.profession,
                    "codeCategorieProfessionnelle": "C",
                    "codeCiviliteDexercice": "DR",
                    "nomDexercice": who.family,
                    "prenomDexercice": who.given,
                    "codeTypeSavoirFaire": "S",
                    "codeSavoirFaire": who.speciality,
                    "activities": [
                        {
                            "codeModeExercice": "L",
                            "codeSecteurDactivite": activity.sector,
                            "raisonSocialeSite": activity.name,
                            "ancienIdentifiantDeLaStructure": activity.structure,
                        }
                        for activity in who.activities
                    ],
                }
            ],
        },
    }
