"""Signing in with an OpenID provider: authorization code flow with PKCE, and a role here by a claim there.

Guarantees: nobody is let in but by an ID token that is signed by one of the provider's published keys, is from the
issuer that is configured, for this client, in force, and the answer to this very browser's question (state, nonce, code
verifier).

References: OpenID Connect Core 1.0, section 3.1; RFC 7636 (PKCE); RFC 9207 (issuer in the answer); RFC 9700.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import ssl
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from common.errors import ForbiddenError, LinkError, SignInError, UsageError
from server.dashboard.security import same
from server.dashboard.settings import OpenIdSection
from server.roles import ROLES, Role

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures by a key of which only the provider has the private half: never "none", never a shared secret."""
KEPT_SECONDS = 600.0
"""How long the provider's description and keys are used before they are asked for again."""
LEEWAY_SECONDS = 60
TIMEOUT_SECONDS = 10.0
LARGEST_ANSWER = 1_000_000
NEEDED = ("authorization_endpoint", "token_endpoint", "jwks_uri")
AGAIN = "begin again from the sign-in page"


class Provider:
    """The OpenID provider of a kit's `dashboard.toml`."""

    def __init__(self, settings: OpenIdSection, kit_folder: Path) -> None:
        """Read the client's secret, if there is one. Raises UsageError when a file can't be read."""
        self.settings = settings
        self._secret = _read_secret(settings, kit_folder)
        self._verify = _authorities(settings, kit_folder)
        self._lock = threading.Lock()
        self._kept: tuple[float, dict[str, Any], KeySet] | None = None

    def begin(self) -> tuple[str, str]:
        """Return the provider's address to send a browser to, and what the browser must bring back (for a cookie).

        Raises LinkError when the provider can't be reached or is not what it should be.
        """
        description, _ = self._description()
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode("ascii")).digest()).rstrip(b"=").decode()
        query = {
            "response_type": "code",
            "client_id": self.settings.client_id,
            "redirect_uri": self.settings.redirect_url,
            "scope": " ".join(self.settings.scopes),
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        address = description["authorization_endpoint"]
        return f"{address}{'&' if urlsplit(address).query else '?'}{urlencode(query)}", f"{state}.{nonce}.{verifier}"

    def finish(self, answer: Mapping[str, str], brought: str) -> dict[str, Any]:
        """Return the claims of who comes back with the query `answer`, in the browser that brought the cookie.

        Raises SignInError for anything that is not the right answer to this browser's question, LinkError when the
        provider can't be reached.
        """
        state, _, rest = brought.partition(".")
        nonce, _, verifier = rest.partition(".")
        if not same(answer.get("state", ""), state):
            raise SignInError(f"this is no answer to a question of this browser: {AGAIN}")
        if "iss" in answer and answer["iss"] != self.settings.issuer:
            raise SignInError(f"the answer is from another provider: {AGAIN}")
        if "error" in answer:
            told = answer.get("error_description") or answer["error"]
            raise SignInError(f"{self.settings.title} did not sign you in: {told[:200]}")
        return self._checked(self._redeem(answer.get("code", ""), verifier), nonce)

    def role_of(self, claims: Mapping[str, Any]) -> Role:
        """Return the highest role that the claims give. Raises ForbiddenError when they give none."""
        found: Any = claims
        for part in self.settings.role_claim.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        values = [found] if isinstance(found, str) else found if isinstance(found, list) else []
        roles = {
            self.settings.roles[value] for value in values if isinstance(value, str) and value in self.settings.roles
        }
        if not roles:
            raise ForbiddenError(f"your account at {self.settings.title} has no role here: ask an admin")
        return max(roles, key=ROLES.index)

    def name_of(self, claims: Mapping[str, Any]) -> str:
        """Return the name that the claims give. Raises SignInError when there is none."""
        name = claims.get(self.settings.name_claim)
        if not isinstance(name, str) or not name:
            raise SignInError(
                f'your account at {self.settings.title} has no "{self.settings.name_claim}": ask an admin'
            )
        return name

    def _redeem(self, code: str, verifier: str) -> str:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.settings.redirect_url,
            "code_verifier": verifier,
        }
        auth = None
        if self._secret is None:
            form["client_id"] = self.settings.client_id
        else:
            auth = httpx.BasicAuth(self.settings.client_id, self._secret)
        told = self._ask("POST", self._description()[0]["token_endpoint"], data=form, auth=auth)
        token = told.get("id_token")
        if not isinstance(token, str):
            raise SignInError(f"{self.settings.title} gave no ID token: {AGAIN}")
        return token

    def _checked(self, token: str, nonce: str) -> dict[str, Any]:
        """OpenID Connect Core, 3.1.3.7: which ID token is to be believed."""
        claims = self._signed(token)
        now, own = time.time(), self.settings.client_id
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        ends, made = claims.get("exp"), claims.get("iat")
        faults = {
            "is from another issuer": claims.get("iss") != self.settings.issuer,
            "is for another client": own not in audiences or claims.get("azp", own) != own,
            "has ended": not isinstance(ends, int | float) or now > ends + LEEWAY_SECONDS,
            "is from the future": not isinstance(made, int | float) or made > now + LEEWAY_SECONDS,
            "is the answer to another question": not same(str(claims.get("nonce", "")), nonce),
            "names nobody": not isinstance(claims.get("sub"), str) or not 0 < len(claims["sub"]) <= 255,
        }
        for fault, found in faults.items():
            if found:
                raise SignInError(f"the ID token of {self.settings.title} {fault}: {AGAIN}")
        return claims

    def _signed(self, token: str) -> dict[str, Any]:
        for fresh in (False, True):  # a provider may have begun to sign with a new key
            try:
                return dict(jwt.decode(token, self._description(fresh=fresh)[1], algorithms=list(ALGORITHMS)).claims)
            except (JoseError, ValueError):
                continue
        raise SignInError(f"the ID token of {self.settings.title} is not signed by it: {AGAIN}")

    def _description(self, *, fresh: bool = False) -> tuple[dict[str, Any], KeySet]:
        with self._lock:
            if self._kept is None or fresh or time.monotonic() - self._kept[0] > KEPT_SECONDS:
                self._kept = (time.monotonic(), *self._fetch())
            return self._kept[1:]

    def _fetch(self) -> tuple[dict[str, Any], KeySet]:
        issuer = self.settings.issuer
        found = self._ask("GET", f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        if found.get("issuer") != issuer:
            raise LinkError(f'the provider at {issuer} calls itself "{found.get("issuer")}": mend "issuer"')
        if any(not isinstance(found.get(name), str) for name in NEEDED):
            raise LinkError(f"the provider at {issuer} does not say {' and '.join(NEEDED)}")
        try:
            return found, KeySet.import_key_set(self._ask("GET", found["jwks_uri"]))  # type: ignore[arg-type]
        except (JoseError, ValueError, KeyError, TypeError) as error:
            raise LinkError(f"the provider at {issuer} publishes no usable keys") from error

    def _ask(self, method: str, address: str, **arguments: Any) -> dict[str, Any]:
        try:
            with httpx.Client(verify=self._verify, timeout=TIMEOUT_SECONDS, trust_env=False) as client:
                answer = client.request(method, address, **arguments)
            if answer.status_code in (400, 401):
                raise SignInError(f"{self.settings.title} did not take the code: {AGAIN}")
            answer.raise_for_status()
            if len(answer.content) > LARGEST_ANSWER:
                raise LinkError(f"{address}: the answer is too large")
            told = json.loads(answer.content)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise LinkError(
                f"{self.settings.title} can't be asked at {address}: {error or type(error).__name__}"
            ) from error
        if not isinstance(told, dict):
            raise LinkError(f"{address}: the answer is no JSON object")
        return told


def subject_of(issuer: str, subject: str) -> str:
    """Return what is kept of an identity: a subject is unique at its issuer only."""
    return f"{issuer} {subject}"


def _read_secret(settings: OpenIdSection, folder: Path) -> str | None:
    if settings.client_secret_file is None:
        return None
    path = folder / settings.client_secret_file
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f'{path}: "openid.client_secret_file" can\'t be read: {error}') from error


def _authorities(settings: OpenIdSection, folder: Path) -> ssl.SSLContext:
    if settings.ca is None:
        return ssl.create_default_context()
    path = folder / settings.ca
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:
        raise UsageError(f'{path}: "openid.ca" can\'t be read: {error.strerror or error}') from error
