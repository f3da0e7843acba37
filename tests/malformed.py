"""Bytes that are no JSON-RPC message, with the error code that each is owed (JSON-RPC 2.0, section 5.1)."""

from __future__ import annotations

MALFORMED = [
    (b'{"jsonrpc":"2.0","id":1,', -32700),
    (b"\xff\xfe", -32700),
    (b"[" * 5000, -32700),
    (b'{"jsonrpc":"2.0","id":"\\ud800","method":"ping"}', -32700),
    (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"list_models","x":"\\udc00"}}', -32700),
    (b'{"jsonrpc":"2.0","id":NaN,"method":"ping"}', -32700),
    (b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', -32600),
    (b"[]", -32600),
    (b"null", -32600),
    (b"{}", -32600),
    (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600),
    (b'{"jsonrpc":"2.0","id":true,"method":"ping"}', -32600),
    (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', -32600),
    (b'{"jsonrpc":"1.0","id":1,"method":"ping"}', -32600),
    (b'{"jsonrpc":"2.0","id":1,"method":5}', -32600),
    (b'{"jsonrpc":"2.0","id":1}', -32600),
]
