"""Runs in the browser and over HTTP, and pipelines over HTTP. Needs the extra ``web``."""

from __future__ import annotations

from taskiq_flow.errors import ConfigurationError

try:
    from taskiq_flow.web.app import runs_app
    from taskiq_flow.web.bridge import setup_websocket_bridge
    from taskiq_flow.web.pipelines import create_visualization_api
    from taskiq_flow.web.server import serve
except ModuleNotFoundError as error:
    if error.name not in ("starlette", "uvicorn"):
        raise
    raise ConfigurationError(
        f"taskiq_flow.web needs {error.name}, which is not installed; install the extra web: "
        "pip install 'taskiq-flow[web]'"
    ) from error

__all__ = ["create_visualization_api", "runs_app", "serve", "setup_websocket_bridge"]
