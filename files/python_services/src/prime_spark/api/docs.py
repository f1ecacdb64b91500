"""The interactive documentation: Swagger UI, all of it from this server."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter, HTTPException, Response
from fastapi.responses import RedirectResponse

router = APIRouter(include_in_schema=False)

# Only its files are used: it carries a released Swagger UI in a wheel.
_PACKAGE = "fastapi_offline"
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Prime Spark API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
# A file of its own: the page's policy allows no inline scripts.
_START = """window.ui = SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  persistAuthorization: false,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
});
"""
_FILES = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}


@router.get("/")
async def root() -> Response:
    """Lead to the documentation."""
    return RedirectResponse("/docs")


@router.get("/docs")
async def page() -> Response:
    """Return the page."""
    return Response(_PAGE, media_type="text/html")


@router.get("/docs/{name}")
async def asset(name: str) -> Response:
    """Return one of the page's files."""
    if name == "start.js":
        return Response(_START, media_type="text/javascript")
    if name not in _FILES:
        raise HTTPException(404)
    data = files(_PACKAGE).joinpath("static", name).read_bytes()
    return Response(data, media_type=_FILES[name])
