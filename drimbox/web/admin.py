"""The admin listener: metrics, liveness and the JSON door of every command that acts on the process.

Theory of operation. `AdminApi` is a registry of routes: a later command adds its own with
`api.register("POST", "/resync/{site}", handler)`; a handler is an `async def` that takes an `AdminCall`
and returns what JSON can hold. `admin_factory` puts a registry behind HTTP.

Without accounts the listener asks nobody who they are: it belongs on the loop, where only the machine's own
users reach it (`access.py` for those it asks). What else can reach a loopback port is a browser of this
machine led by a foreign page, so every request is refused whose Host is a name other than ours (DNS
rebinding), that carries an Origin or says it comes from another site, or that changes something without a
JSON body type (which no page can send without asking first). The time of a handler is bounded; connections
are in `connections.py`.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import date, datetime
from typing import Any
from urllib.parse import parse_qsl, unquote

import attrs
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IProtocolFactory
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import resource, server

from drimbox.config import Listener
from drimbox.errors import DrimboxError
from drimbox.limits import Refused
from drimbox.trust.listener import certificate_of
from drimbox.web.access import ACTS, CALLER, LOCAL, Access, AccessDenied, Caller
from drimbox.web.connections import IDLE_TIMEOUT, MAX_BODY, AdminRequest, AdminSite, Bounded
from drimbox.web.routes import ROUTES, allowed

__all__ = ["AdminApi", "AdminCall", "AdminProblem", "Reply", "admin_factory", "core_api"]

log = Logger()

#: Seconds a handler may take.
HANDLER_TIMEOUT = 30.0
#: What the `Server` header says; the command line recognises us by it.
SERVER_NAME = b"DRIMbox-admin"


@attrs.frozen
class AdminCall:
    """One request, once accepted: path parameters, query and JSON body."""

    params: Mapping[str, str]
    query: Mapping[str, str] = attrs.field(factory=dict)
    body: Mapping[str, Any] = attrs.field(factory=dict)
    caller: Caller = LOCAL


class AdminProblem(Exception):
    """An answer that is not a success: `status` is the HTTP one, `detail` French text for the operator."""

    def __init__(self, status: int, detail: str, *, allow: str = "") -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.allow = allow


@attrs.frozen
class Reply:
    """An answer other than 200 with JSON: bytes are sent as they are, with their `content_type`."""

    body: object
    status: int = 200
    content_type: str = "application/json"


Handler = Callable[[AdminCall], Awaitable[object]]


@attrs.frozen
class _Route:
    method: str
    template: str
    segments: tuple[str, ...]
    handler: Handler

    def params(self, segments: Sequence[str]) -> dict[str, str] | None:
        """Return the parameters of a path that matches, else None."""
        if len(segments) != len(self.segments):
            return None
        found = {}
        for wanted, given in zip(self.segments, segments, strict=True):
            if wanted.startswith("{"):
                if not given:
                    return None
                found[wanted[1:-1]] = given
            elif wanted != given:
                return None
        return found


class AdminApi:
    """The routes of the admin listener."""

    def __init__(self) -> None:
        self._routes: list[_Route] = []

    def register(self, method: str, path: str, handler: Handler) -> None:
        """Answer `method` on `path` with `handler`; `{name}` in the path takes one segment.

        Raises `ValueError` for a route that already exists or is badly written.
        """
        segments = tuple(path.split("/")[1:])
        if method not in ("GET", "POST", "DELETE") or not path.startswith("/"):
            raise ValueError(f"bad route {method} {path}")
        if not all(re.fullmatch(r"[a-z0-9-]+|\{[a-z_]+\}", segment) for segment in segments):
            raise ValueError(f"bad route {method} {path}")
        shape = ["{}" if segment.startswith("{") else segment for segment in segments]
        for route in self._routes:
            theirs = ["{}" if segment.startswith("{") else segment for segment in route.segments]
            if route.method == method and theirs == shape:
                raise ValueError(f"{method} {path} is already {route.template}")
        self._routes.append(_Route(method, path, segments, handler))

    def find(self, method: str, path: str) -> tuple[_Route, dict[str, str]]:
        """Return the route and its parameters. Raises `AdminProblem` 404 or 405."""
        segments = [unquote(segment) for segment in path.split("/")[1:]]
        allowed = set()
        # A route without parameters is more precise than one with.
        for route in sorted(self._routes, key=lambda each: each.template.count("{")):
            params = route.params(segments)
            if params is None:
                continue
            if route.method == method:
                return route, params
            allowed.add(route.method)
        if allowed:
            raise AdminProblem(
                405, "méthode non proposée pour cette ressource", allow=", ".join(sorted(allowed))
            )
        raise AdminProblem(404, "ressource inconnue")


def core_api(
    *,
    status: Callable[[], Awaitable[Mapping[str, Any]]],
    ready: Callable[[], Awaitable[Mapping[str, bool]]],
    exposition: Callable[[], Awaitable[bytes]],
) -> AdminApi:
    """Return the registry that every process has; later commands register on it.

    `status` gives what `drimbox status` shows; `ready` the checks that must all hold before work is sent
    to us; `exposition` the metrics in the Prometheus text format.
    """
    api = AdminApi()

    async def get_metrics(_: AdminCall) -> Reply:
        return Reply(await exposition(), content_type="text/plain; version=0.0.4; charset=utf-8")

    async def get_live(_: AdminCall) -> object:
        return {"live": True}

    async def get_ready(_: AdminCall) -> Reply:
        checks = dict(await ready())
        good = all(checks.values())
        return Reply({"ready": good, "checks": checks}, status=200 if good else 503)

    async def get_status(_: AdminCall) -> object:
        return dict(await status())

    async def get_account(call: AdminCall) -> object:
        role = call.caller.role
        routes = [each for each in ROUTES if allowed(role, each.method, each.path)]
        return {
            "account": call.caller.name,
            "role": role.value,
            "routes": [f"{each.method} {each.path}" for each in routes],
        }

    api.register("GET", "/account", get_account)
    api.register("GET", "/metrics", get_metrics)
    api.register("GET", "/live", get_live)
    api.register("GET", "/ready", get_ready)
    api.register("GET", "/status", get_status)
    return api


# --- HTTP -------------------------------------------------------------------------------------------


def host_accepted(header: bytes, listening: str) -> bool:
    """Say whether a Host header names this listener by `localhost` or by an address of its own.

    A name that a foreign DNS server may resolve to the loop is refused; an address cannot be rebound.
    """
    text = header.decode("ascii", "replace").lower()
    found = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9.-]+))(?::[0-9]{1,5})?", text, re.ASCII)
    if found is None:
        return False
    name = found[1] or found[2]
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    ours = ipaddress.ip_address(listening)
    return address.is_loopback or address == ours or ours.is_unspecified


def _default(value: object) -> object:
    if isinstance(value, date | datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, set | frozenset) else str(value)


class AdminResource(resource.Resource):
    """The whole tree: every path goes to the registry."""

    isLeaf = True

    def __init__(self, api: AdminApi, listening: str, clock: Any, access: Access) -> None:
        super().__init__()
        self._api = api
        self._access = access
        self._listening = listening
        self._clock = clock

    def render(self, request: AdminRequest) -> int:
        """Answer later, when the handler has."""
        answer: Deferred[None] = ensureDeferred(self._answer(request))
        answer.addTimeout(HANDLER_TIMEOUT, self._clock)
        request.notifyFinish().addErrback(lambda _: answer.cancel())
        answer.addErrback(self._failed, request)
        return server.NOT_DONE_YET

    async def _answer(self, request: AdminRequest) -> None:
        try:
            self._refuse_pages(request)
            caller = await self._caller(request)
            call, route = await self._authorised(request, caller)
        except AdminProblem as problem:
            self._problem(request, problem)
            return
        except AccessDenied as denied:
            self._send_error(request, denied.status, denied.detail)
            return
        # Of this request alone: whoever writes down what is done finds it.
        CALLER.set(caller.name)
        ACTS.set([])
        try:
            result = await route.handler(call)
            reply = result if isinstance(result, Reply) else Reply(result)
            data = reply.body if isinstance(reply.body, bytes) else self._json(reply.body)
            self._send(request, reply.status, data, reply.content_type)
        except AdminProblem as problem:
            await self._access.undone(problem.detail)
            self._problem(request, problem)
            reply = Reply(b"", problem.status)
        except DrimboxError as error:
            await self._access.undone(str(error))
            self._send_error(request, error.status, str(error), error.code)
            reply = Reply(b"", error.status)
        if route.method != "GET":
            log.info(
                "administration : {caller} {method} {route} -> {status}",
                caller=caller.name,
                method=route.method,
                route=route.template,
                status=reply.status,
            )

    async def _authorised(self, request: AdminRequest, caller: Caller) -> tuple[AdminCall, _Route]:
        """Return the call a request makes. Raises as `_accept`, and writes down what a role may not."""
        try:
            return self._accept(request, caller)
        except AccessDenied as denied:
            CALLER.set(caller.name)
            await self._access.forbidden(caller, denied.asked, _address(request))
            raise

    async def _caller(self, request: AdminRequest) -> Caller:
        """Return who calls. Raises `AccessDenied`."""
        given = request.requestHeaders.getRawHeaders(b"authorization", [])
        path = request.uri.decode("ascii", "replace").partition("?")[0]
        shown = certificate_of(request.channel.transport) if request.channel is not None else None
        if self._access.asks:
            # Whoever is refused is nobody in the audit trail.
            CALLER.set("")
        return await self._access.caller(
            path, given[0] if len(given) == 1 else None, _address(request), shown
        )

    def _refuse_pages(self, request: AdminRequest) -> None:
        """Refuse what a foreign page has a browser send. Raises `AdminProblem`."""
        headers = request.requestHeaders
        hosts = headers.getRawHeaders(b"host", [])
        # With accounts any name of ours will do: whoever rebinds one has no account.
        named = self._access.asks or (len(hosts) == 1 and host_accepted(hosts[0], self._listening))
        if len(hosts) != 1 or not named:
            raise AdminProblem(403, "nom d'hôte refusé : appeler cette écoute par son adresse ou localhost")
        if headers.hasHeader(b"origin"):
            raise AdminProblem(403, "requête d'une page web refusée")
        if headers.getRawHeaders(b"sec-fetch-site", [b"none"]) != [b"none"]:
            raise AdminProblem(403, "requête d'une page web refusée")

    def _accept(self, request: AdminRequest, caller: Caller) -> tuple[AdminCall, _Route]:
        """Return the call a request makes.

        Raises `AdminProblem` for one that may not be answered, `AccessDenied` for one that is not the
        caller's to make.
        """
        if request.received > MAX_BODY:
            raise AdminProblem(413, f"corps de plus de {MAX_BODY} octets")
        path, _, query = request.uri.decode("ascii", "replace").partition("?")
        method = request.method.decode("ascii", "replace")
        route, params = self._api.find("GET" if method == "HEAD" else method, path)
        caller.require(route.method, route.template)
        try:
            pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=32)
        except ValueError:
            raise AdminProblem(400, "trop de paramètres") from None
        return AdminCall(params, dict(pairs), self._body(request, route), caller), route

    @staticmethod
    def _body(request: AdminRequest, route: _Route) -> Mapping[str, Any]:
        if route.method == "GET":
            return {}
        kind = request.requestHeaders.getRawHeaders(b"content-type", [b""])[0]
        if kind.partition(b";")[0].strip().lower() != b"application/json":
            raise AdminProblem(415, "Content-Type: application/json attendu")
        data = request.content.read() if request.content is not None else b""
        try:
            body = json.loads(data) if data.strip() else {}
        except (ValueError, RecursionError):
            raise AdminProblem(400, "corps JSON illisible") from None
        if not isinstance(body, dict):
            raise AdminProblem(400, "objet JSON attendu")
        return body

    def _failed(self, failure: Failure, request: AdminRequest) -> None:
        if request._disconnected:
            return  # there is nobody to answer
        if failure.check(DeferredTimeout):
            self._send_error(request, 504, "délai dépassé")
            return
        log.failure("administration : échec", failure)
        self._send_error(request, 500, "erreur interne, voir le journal")

    def _problem(self, request: AdminRequest, problem: AdminProblem) -> None:
        if problem.allow:
            request.setHeader(b"allow", problem.allow.encode("ascii"))
        self._send_error(request, problem.status, problem.detail)

    def _send_error(self, request: AdminRequest, status: int, detail: str, code: str | None = None) -> None:
        error = {"status": status, "detail": detail} | ({"code": code} if code else {})
        self._send(request, status, self._json({"error": error}), "application/json")

    @staticmethod
    def _json(value: object) -> bytes:
        return json.dumps(value, ensure_ascii=False, default=_default).encode("utf-8", "backslashreplace")

    @staticmethod
    def _send(request: AdminRequest, status: int, data: bytes, content_type: str) -> None:
        if request.finished or request._disconnected:
            return
        request.setResponseCode(status)
        request.setHeader(b"server", SERVER_NAME)
        request.setHeader(b"content-type", content_type.encode("ascii"))
        request.setHeader(b"content-length", b"%d" % len(data))
        request.setHeader(b"cache-control", b"no-store")
        request.setHeader(b"x-content-type-options", b"nosniff")
        if request.method != b"HEAD":
            request.write(data)
        request.finish()


def _address(request: AdminRequest) -> str:
    return str(getattr(request.getClientAddress(), "host", ""))


async def _here(work: Callable[[], Any]) -> Any:
    return work()


async def _unnoted(_action: str, _subject: str, _why: str = "", /) -> None:
    """Nobody is refused where nobody is asked."""


def admin_factory(
    api: AdminApi,
    listener: Listener,
    clock: Any,
    access: Access | None = None,
    told: Refused = lambda address, why: None,
) -> IProtocolFactory:
    """Return the factory to listen with on `listener`; `clock` is the reactor.

    Without `access` nobody is asked who they are. `told` hears of connections that are closed at once, or
    cut before a request came whole.
    """
    site = AdminSite(
        AdminResource(api, listener.host, clock, access or Access(None, clock, _here, _unnoted)),
        requestFactory=AdminRequest,
        reactor=clock,
        timeout=IDLE_TIMEOUT,
        parsePOSTFormSubmission=False,
    )
    site.noisy = False
    site.displayTracebacks = False
    site.request_timeout = listener.request_timeout
    site.told = told
    factory: IProtocolFactory = Bounded(site, told)
    return factory
