"""Waiting for a job within the time that hosts give a call."""

from __future__ import annotations

import asyncio

from sidecar.core.job import JobView
from sidecar.domain import JobId
from sidecar.edge.tools.tool import Call

PROGRESS_SECONDS = 1.0


class Waiting:
    """The time a call has, from its start: RESPONSE_BUDGET, less where the MCP URL or the caller says so."""

    def __init__(self, call: Call, seconds: float | None = None) -> None:
        self._call = call
        limits = (call.settings.jobs.response_budget, call.presentation.budget, seconds)
        self._deadline = asyncio.get_running_loop().time() + min(limit for limit in limits if limit is not None)

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self._deadline - asyncio.get_running_loop().time())

    async def for_job(self, job_id: JobId) -> JobView:
        """Wait, telling of progress. Raises JobNotFound, StorageFailure."""
        while True:
            left = self.left
            view = await self._call.jobs.wait(job_id, min(PROGRESS_SECONDS, left), self._call.owner)
            if view.ended or view.handed_over or left <= PROGRESS_SECONDS:
                return view
            await self._call.report(view)
