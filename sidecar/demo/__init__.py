"""A demonstration without a GPU: a painter that speaks the KServe v1 protocol, and a tour that uses it through MCP."""
