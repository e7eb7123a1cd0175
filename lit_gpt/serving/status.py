"""`GET` routes: the list of models, whether the server lives and is ready, and its metrics."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from lit_gpt import __version__
from lit_gpt.serving.errors import ApiError, shown
from lit_gpt.serving.service import Service

router = APIRouter()


@router.get("/v1/models", response_model=None)
async def models(request: Request) -> Response:
    """The one model."""
    return JSONResponse({"object": "list", "data": [_card(Service.of(request))]})


@router.get("/v1/models/{name:path}", response_model=None)
async def model(name: str, request: Request) -> Response:
    """The one model by its name."""
    service = Service.of(request)
    if name != service.served.name:
        message = f"the model {shown(name)} does not exist; this server has {service.served.name!r}"
        raise ApiError(404, message, "model_not_found", "model")
    return JSONResponse(_card(service))


def _card(service: Service) -> dict[str, Any]:
    served = service.served
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "lit_gpt",
        # Beyond OpenAI's: what the page needs to know.
        "max_model_len": served.max_length,
        "chat": served.renderer is not None,
        "tools": served.tool_form is not None,
        "version": __version__,
    }


@router.get("/health", response_model=None)
async def health(request: Request) -> Response:
    """Whether the engine's thread lives; an orchestrator restarts the process when it does not."""
    failure = Service.of(request).served.loop.failure
    return JSONResponse({"status": "ok" if failure is None else "failed"}, 200 if failure is None else 503)


@router.get("/ready", response_model=None)
async def ready(request: Request) -> Response:
    """Whether a request sent now would be accepted; a balancer sends none while it is not."""
    service = Service.of(request)
    admission = service.admission
    if service.served.loop.failure is not None:
        status = "failed"
    elif admission.draining:
        status = "shutting down"
    elif admission.in_flight >= admission.running + admission.queued:
        status = "busy"
    else:
        status = "ready"
    return JSONResponse({"status": status}, 200 if status == "ready" else 503)


@router.get("/metrics", response_model=None)
async def metrics(request: Request) -> Response:
    """For Prometheus; with keys set, it needs one as well."""
    return Response(Service.of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)
