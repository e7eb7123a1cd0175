"""The application: routes inside, and around them the layers that every request passes."""

from collections.abc import Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from lit_gpt.errors import UserError
from lit_gpt.serving import chat, completions, embeddings, status
from lit_gpt.serving.access import AccessControl, Keys
from lit_gpt.serving.body import BodyLimit
from lit_gpt.serving.edge import Edge, note, unforeseen
from lit_gpt.serving.errors import ApiError
from lit_gpt.serving.page import content_security_policy, page_html
from lit_gpt.serving.protocol import refusal
from lit_gpt.serving.service import Service

ROUTES = frozenset(
    {
        "/",
        "/health",
        "/ready",
        "/metrics",
        "/v1/models",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
    }
)


def create_app(
    service: Service, keys: Keys | None = None, hosts: frozenset[str] | None = None, cors_origins: Sequence[str] = ()
) -> ASGIApp:
    """Build the application.

    Args:
        service: The model and its limits.
        keys: That open the API; None: it is open to all.
        hosts: Names that requests may name the server by, in lower case; None: any.
        cors_origins: Pages of other origins that may call the API from a browser.
    """
    # Its documentation pages would load scripts from elsewhere; its telemetry would see what requests say.
    app = FastAPI(
        title="lit_gpt",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.service = service
    for router in (chat.router, completions.router, embeddings.router, status.router):
        app.include_router(router)
    app.add_api_route("/", _page, methods=["GET", "HEAD"], response_model=None)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(UserError, _user_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _fault)
    guarded: ASGIApp = BodyLimit(app, service.limits, service.metrics)
    guarded = AccessControl(guarded, keys or Keys(), hosts, service.metrics)
    if cors_origins:
        guarded = CORSMiddleware(
            guarded,
            allow_origins=list(cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    return Edge(guarded, service.metrics, ROUTES)


async def _page() -> Response:
    headers = {"Content-Security-Policy": content_security_policy(), "Cache-Control": "no-cache"}
    return HTMLResponse(page_html(), headers=headers)


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


async def _fault(request: Request, error: Exception) -> Response:
    """Starlette raises it again after this answer, and `Edge` writes it down."""
    return await _api_error(request, unforeseen(request.scope))
