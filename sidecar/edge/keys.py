"""Every key of the aiohttp application and of its requests: what handlers fetch their parts by."""

from __future__ import annotations

from aiohttp import web

from sidecar.config import Settings
from sidecar.core.jobs import JobService
from sidecar.core.readiness import Health
from sidecar.core.service import ImageService
from sidecar.observe.metrics import Metrics
from sidecar.ports import Clock

SETTINGS = web.AppKey("settings", Settings)
JOBS = web.AppKey("jobs", JobService)
SERVICE = web.AppKey("service", ImageService)
METRICS = web.AppKey("metrics", Metrics)
HEALTH = web.AppKey("health", Health)
CLOCK = web.AppKey("clock", Clock)

BODY = web.RequestKey("body", bytes)
"""The whole body of a request, decoded; there before any handler runs."""
