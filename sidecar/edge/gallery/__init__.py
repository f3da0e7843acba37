"""The gallery: pages that show what this server made, and let its images be deleted.

Everything can be seen without script; the script adds what needs one: copying, deleting, the live queue. A page and
what it shows are one origin's affair, so every link in it is relative and it works behind any path prefix.
"""

from sidecar.edge.gallery.pages import STATUS, routes
from sidecar.edge.gallery.status import Status

__all__ = ["STATUS", "Status", "routes"]
