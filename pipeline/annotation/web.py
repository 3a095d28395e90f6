"""The annotation page: FastAPI in front of the store. Everything it serves comes from this machine.

The page learns nothing about a pair but four image addresses made of a random lease id: which candidate stands left,
where it came from and why it is asked are known to the store only.
"""

# no `from __future__ import annotations`: FastAPI reads the endpoints' annotations, which name locals of create_app

import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from unicodedata import normalize
from urllib.parse import parse_qs, quote, unquote
from uuid import UUID

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from markdown_it import MarkdownIt
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware

from pipeline.annotation.rounds import Round
from pipeline.annotation.store import Choice, Lease, Progress, Refused, Store, Unavailable
from pipeline.params import UserError

HERE = Path(__file__).parent
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
WILDCARDS = frozenset({"0.0.0.0", "::", ""})  # listen everywhere, but nobody can open them
LONGEST_NAME = 40
LONGEST_FORM = 4096  # bytes
WRONG_TOKEN = "That is not the token that the command printed."
PAIRS_AHEAD = 2  # the pair on screen and the next one, fetched while the first is judged
POLICY = "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"


class VoteEvent(BaseModel):
    """One vote as the page sends it; `event_id` is made by the page, so that sending twice saves once."""

    kind: Literal["vote"]
    event_id: UUID
    lease: str
    choice: Choice
    response_ms: int = Field(ge=0, le=2**53)


class UndoEvent(BaseModel):
    """Take back the vote `target`, the last one where the page knows of none (it was loaded anew)."""

    kind: Literal["undo"]
    event_id: UUID
    target: UUID | None = None


class Renewal(BaseModel):
    """Pairs that are still on screen."""

    leases: list[str] = Field(max_length=16)


def create_app(store: Store, rounds: Sequence[Round], token: str | None, hosts: Sequence[str]) -> FastAPI:
    """The web app for some rounds. `token` None lets everyone in; `hosts` are the Host headers that are answered."""
    for one in rounds:
        store.add_round(one)
    by_id = {one.round_id: one for one in rounds}
    guidelines = MarkdownIt("commonmark").enable("table").render((HERE / "guidelines.md").read_text(encoding="utf-8"))
    templates = Jinja2Templates(HERE / "templates")
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)  # the interactive docs would load from a CDN
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.mount("/static", StaticFiles(directory=HERE / "static"))

    @app.middleware("http")
    async def headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if request.method == "POST" and request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
            response: Response = JSONResponse({"problem": "another site asked for this"}, status_code=403)
        else:
            response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers.setdefault("Cache-Control", "no-cache")
        return response

    @app.exception_handler(Unavailable)
    def unavailable(_request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"problem": str(error)}, status_code=503)

    @app.exception_handler(Refused)
    def refused(_request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"problem": str(error)}, status_code=409)

    def admitted(given: str | None) -> bool:
        return token is None or (given is not None and secrets.compare_digest(given.encode(), token.encode()))

    def known_token(request: Request) -> str | None:
        return unquote(request.cookies["token"]) if "token" in request.cookies else None

    def who(request: Request) -> str:
        name = unquote(request.cookies.get("annotator", ""))
        # a page says whose it is: somebody else may have signed in since, in another tab of this browser
        page_of = unquote(request.headers.get("X-Annotator", quote(name)))
        if not admitted(known_token(request)) or not is_name(name) or page_of != name:
            raise HTTPException(401, "sign in first")
        # and which database its votes belong to: another project may have been started on this port meanwhile
        if request.headers.get("X-Database", store.identity) != store.identity:
            raise Unavailable("this page belongs to another votes database; reload it")
        return name

    Annotator = Annotated[str, Depends(who)]

    def sign_in_page(request: Request, name: str = "", problem: str = "") -> HTMLResponse:
        context = {
            "name": name,
            "problem": problem,
            "guidelines": guidelines,
            "ask_token": not admitted(known_token(request)),
        }
        return templates.TemplateResponse(request, "sign_in.html", context, status_code=400 if problem else 200)

    @app.get("/")
    def page(request: Request) -> Response:
        if "token" in request.query_params:  # the address that the command printed; kept as a cookie, not in history
            right = admitted(given := request.query_params["token"])
            if not right and not admitted(known_token(request)):  # an old link stops nobody who has the present one
                return sign_in_page(request, problem=WRONG_TOKEN)
            response = RedirectResponse("/", status_code=303)
            if right:
                _remember(response, "token", given)
            return response
        try:
            name = who(request)
        except HTTPException:
            return sign_in_page(request)
        if (
            known := store.spelling(name)
        ) != name:  # as another project's cookie has it; capitals make no second person
            response = RedirectResponse("/", status_code=303)
            _remember(response, "annotator", known)
            return response
        context = {"annotator": name, "database": store.identity, "guidelines": guidelines}
        context["lease_seconds"] = store.lease_seconds
        return templates.TemplateResponse(request, "vote.html", context)

    @app.post("/sign-in")
    async def sign_in(request: Request) -> Response:
        length = request.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > LONGEST_FORM:  # anybody may send one, and it is read as a whole
            return sign_in_page(request, problem="That was no sign-in form.")
        form = parse_qs((await request.body()).decode(errors="replace"))
        name = normalize("NFC", form.get("name", [""])[0].strip())
        given = form.get("token", [known_token(request) or ""])[0].strip()
        if not is_name(name):
            said = f"A name has 1 to {LONGEST_NAME} characters, the first a letter, digit or _."
            return sign_in_page(request, name, said)
        if not admitted(given):
            return sign_in_page(request, name, WRONG_TOKEN)
        try:
            name = await run_in_threadpool(store.spelling, name)  # it waits for the database; others must not
        except Unavailable as error:
            return sign_in_page(request, name, f"{error}; try again.")
        response = RedirectResponse("/", status_code=303)
        _remember(response, "annotator", name)
        if token is not None:
            _remember(response, "token", given)
        return response

    @app.post("/sign-out")
    def sign_out() -> Response:
        response = RedirectResponse("/", status_code=303)
        response.delete_cookie("annotator")
        return response

    @app.post("/api/next")
    def next_pairs(annotator: Annotator) -> dict[str, Any]:
        leases, progress = store.claim(annotator, PAIRS_AHEAD)
        return {"pairs": [_addresses(lease) for lease in leases], "progress": _counts(progress)}

    @app.post("/api/events")
    def save(
        event: Annotated[VoteEvent | UndoEvent, Field(discriminator="kind")], annotator: Annotator
    ) -> dict[str, Any]:
        if isinstance(event, UndoEvent):
            return {"saved": store.undo(str(event.event_id), annotator, str(event.target) if event.target else None)}
        new = store.vote(str(event.event_id), annotator, event.lease, event.choice, event.response_ms)
        return {"saved": True, "new": new}

    @app.post("/api/renew")
    def renew(renewal: Renewal, annotator: Annotator) -> dict[str, Any]:
        store.renew(renewal.leases, annotator)
        return {"saved": True}

    @app.get("/image/{lease_id}/{slot}")
    def image(lease_id: str, slot: Literal["left", "right", "input", "original"], annotator: Annotator) -> Response:
        lease = store.lease(lease_id, annotator)
        if lease.round_id not in by_id:
            raise Refused("this pair belongs to a round that is not open")
        if slot == "original":
            store.show_reference(lease_id, annotator)  # before the image goes out: what was seen is always recorded
            column, cache = "hq", "no-store"
        else:
            column = "lq" if slot == "input" else lease.column(slot)
            cache = "private, max-age=86400, immutable"
        png = by_id[lease.round_id].png(lease.pair_id, column)
        return Response(png, media_type="image/png", headers={"Cache-Control": cache})

    return app


def _remember(response: Response, key: str, value: str) -> None:
    # lax, not strict: the printed address must also work as a link in a mail; what changes anything is a POST
    response.set_cookie(key, quote(value), max_age=90 * 24 * 3600, httponly=True, samesite="lax")


def _addresses(lease: Lease) -> dict[str, str]:
    slots = ("left", "right", "input", "original")
    return {"lease": lease.lease_id} | {slot: f"/image/{lease.lease_id}/{slot}" for slot in slots}


def is_name(text: str) -> bool:
    """Whether somebody may be called so: in any script, without control characters."""
    begins = text[:1].isalnum() or text[:1] == "_"
    return begins and len(text) <= LONGEST_NAME and text.isprintable() and text == text.strip()


def _counts(progress: Progress) -> dict[str, int]:
    return {"done": progress.done, "open": progress.open, "waiting": progress.waiting}


def serve(store: Store, rounds: Sequence[Round], host: str, port: int, token: str | None) -> None:
    """Run the page until interrupted; prints its address. Port 0 takes a free one.

    Beyond 127.0.0.1 a token is required, and made when none is given; an empty one asks for one. Raises UserError for a
    port that is taken.
    """
    local = host in LOOPBACK
    if token == "" or (not local and token is None):
        token = secrets.token_urlsafe(16)
    app = create_app(store, rounds, token, sorted(LOOPBACK | {"[::1]"}) if local else ["*"])
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen()  # before the address is printed: whoever opens it at once waits instead of being refused
        except OSError as error:
            raise UserError(
                f"can't listen on {host}:{port} ({error.strerror}); choose another --host or --port"
            ) from None
        reached = socket.gethostname() if host in WILDCARDS else host
        name = f"[{reached}]" if ":" in reached else reached
        query = f"?token={quote(token)}" if token is not None else ""
        print(f"annotate at http://{name}:{listener.getsockname()[1]}/{query}  (Ctrl-C ends it)", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
