"""The ASGI application: routes, and the middleware around them."""

import re
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from lit_gpt import __version__
from lit_gpt.errors import UserError
from lit_gpt.serving import chat, completions, embeddings, messages_api, response_api
from lit_gpt.serving.errors import ApiError
from lit_gpt.serving.middleware import AccessControl, BodyLimit, Keys, RequestLog, internal_error, note
from lit_gpt.serving.openapi import ModelCard, ModelList, Status, answered_with, answered_with_text, document
from lit_gpt.serving.page import content_security_policy, page_etag, page_html
from lit_gpt.serving.protocol import refusal
from lit_gpt.serving.service import Service

READ_ROUTES = frozenset({"/", "/health", "/ready", "/metrics", "/openapi.json", "/v1/models"})
JSON_ROUTES = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages", "/v1/responses"})
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*/?")
router = APIRouter()


def create_app(
    service: Service,
    keys: Keys | None = None,
    hosts: frozenset[str] | None = None,
    cors_origins: Sequence[str] = (),
    root_path: str = "",
) -> ASGIApp:
    """Build the application.

    Args:
        service: The model and its limits.
        keys: API keys; None: the API is open to everyone.
        hosts: Allowed names in the Host header, in lower case; None: any.
        cors_origins: Origins of other pages that may call the API from a browser.
        root_path: Prefix under which a reverse proxy publishes the server, such as `/llm`.

    Raises:
        UserError: If the prefix is not a path.
    """
    if not _ROOT_PATH.fullmatch(root_path):
        raise UserError(f"root_path is {root_path!r}; write a path that begins with a slash, such as /llm")
    # FastAPI's documentation pages would load scripts from other hosts, and its telemetry would see requests.
    app = FastAPI(
        title="lit_gpt",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.service = service
    for module in (chat, response_api, messages_api, completions, embeddings):
        app.include_router(module.router)
    app.include_router(router)
    description = document(app, service.served.name, root_path, bool(keys))

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> JSONResponse:
        return JSONResponse(description)

    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(UserError, _user_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _bug)
    guarded: ASGIApp = BodyLimit(app, service.limits, service.metrics, JSON_ROUTES)
    guarded = AccessControl(guarded, keys or Keys(), hosts, service.metrics)
    if cors_origins:
        # Allow any header: the openai client for browsers sends a dozen of its own. Cookies are not allowed, so a
        # header carries nothing that the page does not already know.
        guarded = CORSMiddleware(
            guarded, allow_origins=list(cors_origins), allow_methods=["GET", "HEAD", "POST"], allow_headers=["*"]
        )
    return RequestLog(guarded, service.metrics, READ_ROUTES | JSON_ROUTES, root_path)


# ------------------------------------------------------------------ GET routes


@router.get("/", response_model=None, responses=answered_with_text("text/html"))
async def page(request: Request) -> Response:
    """Return the chat page; 304 without it if the browser has this version."""
    headers = {"Content-Security-Policy": content_security_policy(), "Cache-Control": "no-cache", "ETag": page_etag()}
    known = request.headers.get("if-none-match", "")
    if page_etag() in [tag.strip().removeprefix("W/") for tag in known.split(",")]:
        return Response(status_code=304, headers=headers)
    return HTMLResponse(page_html(), headers=headers)


@router.get("/v1/models", response_model=None, responses=answered_with(ModelList))
async def models(request: Request) -> Response:
    """List the served model."""
    return JSONResponse({"object": "list", "data": [_card(Service.of(request))]})


@router.get("/v1/models/{name:path}", response_model=None, responses=answered_with(ModelCard))
async def model(name: str, request: Request) -> Response:
    """Describe the served model by its name."""
    service = Service.of(request)
    service.check_model(name)
    return JSONResponse(_card(service))


def _card(service: Service) -> dict[str, Any]:
    served = service.served
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "lit_gpt",
        # Extensions of OpenAI's fields that the page needs.
        "max_model_len": served.max_length,
        "chat": served.renderer is not None,
        "tools": served.tool_form is not None,
        "version": __version__,
    }


@router.get("/health", response_model=None, responses=answered_with(Status, 503))
async def health(request: Request) -> Response:
    """Report whether the engine's thread is alive; an orchestrator restarts the process if it is not."""
    failure = Service.of(request).served.loop.failure
    return JSONResponse({"status": "ok" if failure is None else "failed"}, 200 if failure is None else 503)


@router.get("/ready", response_model=None, responses=answered_with(Status, 503))
async def ready(request: Request) -> Response:
    """Report whether a request would be accepted now, for load balancers."""
    service = Service.of(request)
    admission = service.admission
    if service.served.loop.failure is not None:
        status = "failed"
    elif admission.draining:
        status = "shutting down"
    elif admission.in_flight >= admission.capacity:
        status = "busy"
    else:
        status = "ready"
    return JSONResponse({"status": status}, 200 if status == "ready" else 503)


@router.get("/metrics", response_model=None, responses=answered_with_text("text/plain"))
async def metrics(request: Request) -> Response:
    """Return the metrics for Prometheus; if API keys are set, it requires one as well."""
    return Response(Service.of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


# ------------------------------------------------------------------ errors


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    note(request.scope, refused=str(error.code))
    return JSONResponse(error.body(), error.status, error.headers)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _api_error(request, refusal(list(error.errors())))


async def _user_error(request: Request, error: Exception) -> Response:
    return await _api_error(request, ApiError(400, str(error), "invalid_value"))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {404: "there is nothing at this path", 405: "this path does not take this method"}
    message = messages.get(error.status_code, "the request cannot be answered")
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    return await _api_error(request, ApiError(error.status_code, message, code, headers=error.headers))


async def _bug(request: Request, error: Exception) -> Response:
    """Answer with a 500; Starlette raises the exception again afterwards, and `RequestLog` logs it."""
    return await _api_error(request, internal_error(request.scope))
