"""Routes whose answers take long hold connections that no newcomer evicts.

They must not use up the budget of a port, or a probe is refused there and the kubelet restarts the pod (issue 13).
"""

from __future__ import annotations

from aiohttp import web

from sidecar.edge.guard import Handler

_RETRY_SECONDS = 5


def at_most(limit: int, handler: Handler) -> Handler:
    """A handler that has at most `limit` requests in progress, and answers more of them at once with 503."""
    in_progress = 0

    async def limited(request: web.Request) -> web.StreamResponse:
        nonlocal in_progress
        if in_progress >= limit:
            text = f"{limit} such requests are in progress already. Try again later."
            return web.json_response({"error": text}, status=503, headers={"Retry-After": str(_RETRY_SECONDS)})
        in_progress += 1
        try:
            return await handler(request)
        finally:
            in_progress -= 1

    return limited
