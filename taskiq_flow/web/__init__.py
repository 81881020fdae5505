"""Runs in the browser and over HTTP: ``runs_app``, and ``serve``. Needs the extra ``web``."""

from __future__ import annotations

from taskiq_flow.errors import ConfigurationError

try:
    from taskiq_flow.web.app import runs_app
    from taskiq_flow.web.server import serve
except ModuleNotFoundError as error:
    if error.name not in ("starlette", "uvicorn"):
        raise
    raise ConfigurationError(
        f"taskiq_flow.web needs {error.name}, which is not installed; install the extra web: "
        "pip install 'taskiq-flow[web]'"
    ) from error

__all__ = ["runs_app", "serve"]
