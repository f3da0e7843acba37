"""Small servers on loopback in place of those that surround a bucket: AWS's givers of credentials, TLS, a proxy."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from yarl import URL

from tests import ceph

SESSION = "a/session+token="
ROLE = "arn:aws:iam::123456789012:role/painter"


def _ends(life: timedelta) -> str:
    return f"{datetime.now(UTC) + life:%Y-%m-%dT%H:%M:%SZ}"


@dataclass
class Sts:
    """Trusts everybody who has a web identity, and notes the tokens that it was shown."""

    life: timedelta = timedelta(minutes=5)
    tokens: list[str] = field(default_factory=list)
    refuses: bool = False

    async def handle(self, request: web.Request) -> web.Response:
        given = await request.post()
        assert (given["Action"], given["RoleArn"]) == ("AssumeRoleWithWebIdentity", ROLE)
        self.tokens.append(str(given["WebIdentityToken"]))
        if self.refuses:
            text = "<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>"
            return web.Response(status=403, text=text, content_type="text/xml")
        return web.Response(
            content_type="text/xml",
            text='<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
            "<AssumeRoleWithWebIdentityResult><Credentials>"
            f"<AccessKeyId>{ceph.ACCESS_KEY}</AccessKeyId><SecretAccessKey>{ceph.SECRET_KEY}</SecretAccessKey>"
            f"<SessionToken>{SESSION}</SessionToken><Expiration>{_ends(self.life)}</Expiration>"
            "</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>",
        )


class InstanceMetadata:
    """The instance's role by version 2 of the protocol: a session first, then the role's name, then its credentials."""

    _ROLES = "/latest/meta-data/iam/security-credentials/"

    async def handle(self, request: web.Request) -> web.Response:
        if (request.method, request.path) == ("PUT", "/latest/api/token"):
            return web.Response(text="a-session")
        if request.headers.get("X-aws-ec2-metadata-token") != "a-session":
            return web.Response(status=401)
        if request.path == self._ROLES:
            return web.Response(text="painter")
        assert request.path == f"{self._ROLES}painter"
        return web.json_response(
            {
                "Code": "Success",
                "Type": "AWS-HMAC",
                "AccessKeyId": ceph.ACCESS_KEY,
                "SecretAccessKey": ceph.SECRET_KEY,
                "Token": SESSION,
                "LastUpdated": _ends(timedelta()),
                "Expiration": _ends(timedelta(hours=6)),
            }
        )


@dataclass
class Proxy:
    """An HTTP proxy that knows where every name is: at `store`. Notes the hosts that were asked for."""

    store: str
    hosts: set[str] = field(default_factory=set)

    async def handle(self, request: web.Request) -> web.Response:
        self.hosts.add(request.headers["Host"])
        path = "/" + request.raw_path.removeprefix("http://").partition("/")[2]
        headers = {name: value for name, value in request.headers.items() if not name.startswith("Proxy-")}
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(
                request.method, URL(self.store + path, encoded=True), headers=headers, data=await request.read()
            ) as answer,
        ):
            kept = {name: value for name, value in answer.headers.items() if name not in ("Transfer-Encoding", "Date")}
            body = None if request.method == "HEAD" else await answer.read()
            return web.Response(status=answer.status, headers=kept, body=body)


async def serving(aiohttp_server: Any, handle: Any) -> str:
    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{path:.*}", handle)
    return f"http://127.0.0.1:{(await aiohttp_server(app)).port}"


# --- TLS --------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def behind_tls(store: str, directory: Path) -> AsyncIterator[tuple[str, Path]]:
    """The store by TLS: its URL, and the file with the authority that vouches for it."""
    authority, context = _private_authority(directory)
    host, port = store.removeprefix("http://").split(":")

    async def passed_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(_copied(reader, far_writer), _copied(far_reader, writer))

    server = await asyncio.start_server(passed_on, "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", authority


async def _copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, ssl.SSLError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


def _private_authority(directory: Path) -> tuple[Path, ssl.SSLContext]:
    """An authority's certificate in a file, and a server's that it has signed."""
    authority_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = (
        _certificate("a private authority", "a private authority", authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    server = (
        _certificate("a store", "a private authority", server_key)
        .add_extension(names, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    (directory / "authority.pem").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    (directory / "server.pem").write_bytes(
        server.public_bytes(serialization.Encoding.PEM)
        + server_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem")
    return directory / "authority.pem", context


def _certificate(subject: str, issuer: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
    )
