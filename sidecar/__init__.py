"""mcp-image-sidecar: an MCP server beside a KServe diffusers runtime."""

__version__ = "0.1.0"
