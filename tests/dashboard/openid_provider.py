"""A small OpenID provider that is real: discovery, PKCE, signed ID tokens, codes that work once. And may lie."""

from __future__ import annotations

import base64
import hashlib
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI, Request
from joserfc import jwt
from joserfc.jwk import ECKey
from starlette.responses import JSONResponse, RedirectResponse

SECRET = "a secret of the client's"


class OpenIdProvider:
    """`account` are the claims of whoever signs in; `lies` replace claims of the ID token."""

    def __init__(self, port: int) -> None:
        self.issuer = f"http://127.0.0.1:{port}"
        self.key = ECKey.generate_key("P-256", {"kid": "1"})
        self.signs_with = self.key
        self.account = {"sub": "42", "preferred_username": "berg", "name": "Anna Berg", "roles": ["round-keepers"]}
        self.lies: dict[str, object] = {}
        self.answers_with_issuer = self.issuer
        self._codes: dict[str, dict[str, str]] = {}
        self.app = FastAPI()
        self.app.get("/.well-known/openid-configuration")(self.describe)
        self.app.get("/keys")(lambda: {"keys": [self.key.as_dict(private=False)]})
        self.app.get("/authorize")(self.authorize)
        self.app.post("/token")(self.redeem)

    def describe(self):
        paths = {"authorization_endpoint": "/authorize", "token_endpoint": "/token", "jwks_uri": "/keys"}
        return {"issuer": self.issuer} | {name: self.issuer + path for name, path in paths.items()}

    def authorize(self, request: Request):
        asked = dict(request.query_params)
        assert (asked["response_type"], asked["code_challenge_method"]) == ("code", "S256")
        code = secrets.token_urlsafe(8)
        self._codes[code] = asked
        answer = f"code={code}&state={asked['state']}&iss={self.answers_with_issuer}"
        return RedirectResponse(f"{asked['redirect_uri']}?{answer}", 303)

    async def redeem(self, request: Request):
        form = await request.form()
        asked = self._codes.pop(form["code"], None)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest()).rstrip(b"=")
        given = base64.b64decode(request.headers["authorization"].removeprefix("Basic ")).decode().partition(":")[2]
        if asked is None or asked["code_challenge"] != challenge.decode() or given.replace("%20", " ") != SECRET:
            return JSONResponse({"error": "invalid_grant"}, 400)
        now = int(time.time())
        fixed = {"iss": self.issuer, "aud": asked["client_id"], "iat": now, "exp": now + 300, "nonce": asked["nonce"]}
        claims = {name: value for name, value in (fixed | self.account | self.lies).items() if value is not None}
        return {"id_token": jwt.encode({"alg": "ES256", "kid": "1"}, claims, self.signs_with), "token_type": "Bearer"}


@contextmanager
def serving() -> Iterator[OpenIdProvider]:
    listener = socket.create_server(("127.0.0.1", 0))
    provider = OpenIdProvider(listener.getsockname()[1])
    server = uvicorn.Server(uvicorn.Config(provider.app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield provider
    finally:
        server.should_exit = True
        thread.join()
