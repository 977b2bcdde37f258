"""`dashboard.toml` in the coordinator's kit: how long sessions last, and signing in with an OpenID provider."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator

from common.errors import UsageError
from common.faults import explain
from common.files import read_text
from common.kit import Kit
from common.section import Section
from server.roles import Role

FILE_NAME = "dashboard.toml"


class SessionSection(Section):
    """How long a session lasts."""

    idle_minutes: int = Field(30, ge=1, le=720, description="Minutes without a click after which a session ends.")
    hours: int = Field(12, ge=1, le=24, description="Hours after which a session ends in any case.")


class OpenIdSection(Section):
    """An OpenID provider, and whom of its users this coordinator knows."""

    issuer: str = Field(description="The provider's issuer URL; its /.well-known/openid-configuration is read.")
    client_id: str = Field(min_length=1, description="This coordinator's client id there.")
    client_secret_file: Path | None = Field(
        None, description="File with the client's secret, relative to the kit; none for a public client."
    )
    redirect_url: str = Field(description="Where the provider sends people back: https://HOST:9443/oidc/return.")
    title: str = Field("OpenID Connect", min_length=1, max_length=60, description="What its button says.")
    scopes: tuple[str, ...] = Field(("openid", "profile", "email"), description="What the provider is asked for.")
    name_claim: str = Field("preferred_username", description="The claim that names a person here.")
    role_claim: str = Field("roles", description="The claim with the provider's groups or roles; dots go deeper.")
    roles: dict[str, Role] = Field(
        min_length=1, description="The role here for each value of that claim; who has none of them is turned away."
    )
    ca: Path | None = Field(None, description="The provider's authority (PEM), relative to the kit; else the system's.")
    passwords: bool = Field(True, description="Whether people may sign in with a password too.")

    @field_validator("issuer", "redirect_url")
    @classmethod
    def _is_https(cls, url: str) -> str:
        parts = urlsplit(url)
        local = parts.hostname in ("127.0.0.1", "::1", "localhost")
        if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and local)):
            raise ValueError("an https:// address is needed")
        return url

    @model_validator(mode="after")
    def _asks_for_openid(self) -> OpenIdSection:
        if "openid" not in self.scopes:
            raise ValueError('"openid" must be among the scopes')
        return self


class Settings(Section):
    """Everything that `dashboard.toml` may say; all of it may be left out."""

    session: SessionSection = SessionSection()
    openid: OpenIdSection | None = None


def read_settings(kit: Kit) -> Settings:
    """Read the kit's `dashboard.toml`; without one, the defaults. Raises UsageError, a line for each fault."""
    path = kit.folder / FILE_NAME
    try:
        text = read_text(path)
        table: dict[str, Any] = tomllib.loads(text)
        return Settings.model_validate(table)
    except FileNotFoundError:
        return Settings()
    except OSError as error:
        raise UsageError(f"{path}: the file can't be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from error
    except ValidationError as error:
        raise UsageError(explain(error, Settings, str(path), text)) from error
