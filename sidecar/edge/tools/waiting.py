"""Waiting for a job within the time that hosts give a call."""

from __future__ import annotations

import asyncio

from sidecar.core.jobs import JobView
from sidecar.domain import JobId
from sidecar.edge.tools.tool import Call

PROGRESS_SECONDS = 1.0


class Waiting:
    """The time a call has, from its start; RESPONSE_BUDGET at most."""

    def __init__(self, call: Call, seconds: float | None = None) -> None:
        self._call = call
        budget = call.settings.jobs.response_budget
        self._deadline = asyncio.get_running_loop().time() + min(budget, budget if seconds is None else seconds)

    async def for_job(self, job_id: JobId) -> JobView:
        """Wait, telling of progress. Raises JobNotFound, StorageFailure."""
        while True:
            left = self._deadline - asyncio.get_running_loop().time()
            view = await self._call.jobs.wait(job_id, min(PROGRESS_SECONDS, max(0.0, left)), self._call.owner)
            if view.ended or left <= PROGRESS_SECONDS:
                return view
            await self._call.report(view)
