"""`wardround site listen` and `send`, and what `import` has for a PACS: a thin skin over `client.pacs`."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.options import CleanPixelsOption, DeidentifyOption, JsonOption, KitOption
from common.errors import LinkError, UsageError
from common.kit import find_kit

if TYPE_CHECKING:
    from collections.abc import Callable

    from client.intake.importer import ImportOptions
    from client.pacs.archive import Archive
    from client.pacs.query import Query
    from common.kit import Kit

PANEL = "A PACS"
PacsOption = Annotated[
    str | None, typer.Option("--pacs", metavar="AE@HOST:PORT", help="A PACS that speaks DIMSE.", rich_help_panel=PANEL)
]
DicomwebOption = Annotated[
    str | None, typer.Option("--dicomweb", metavar="URL", help="A PACS that speaks DICOMweb.", rich_help_panel=PANEL)
]
BodyPartOption = Annotated[
    str,
    typer.Option(
        "--body-part", help='Only series of this Body Part Examined ("*" is any text).', rich_help_panel=PANEL
    ),
]
DatesOption = Annotated[
    str, typer.Option("--dates", help="Only studies of these dates: 20200101-20201231.", rich_help_panel=PANEL)
]
PatientIdOption = Annotated[
    str, typer.Option("--patient-id", help="Only this patient, by the hospital's Patient ID.", rich_help_panel=PANEL)
]
StudyOption = Annotated[
    str, typer.Option("--study", help="Only this study, by its Study Instance UID.", rich_help_panel=PANEL)
]
AeTitleOption = Annotated[
    str, typer.Option("--ae-title", help="This side's AE title, as the PACS knows it.", rich_help_panel=PANEL)
]
ReceivePortOption = Annotated[
    int | None,
    typer.Option(
        "--receive-port", min=1, max=65535, rich_help_panel=PANEL,
        help="Have the PACS send to this port here (C-MOVE), if it has no C-GET; it must know the AE title's address.",
    ),
]  # fmt: skip
TlsOption = Annotated[bool, typer.Option("--tls", help="DIMSE over TLS.", rich_help_panel=PANEL)]
CaOption = Annotated[
    Path | None,
    typer.Option(
        "--ca", rich_help_panel=PANEL,
        help="Who signs the other side's certificate, PEM (default: whom this machine trusts).",
    ),
]  # fmt: skip
CertificateOption = Annotated[
    Path | None, typer.Option("--certificate", help="This side's TLS certificate, PEM.", rich_help_panel=PANEL)
]
KeyOption = Annotated[
    Path | None, typer.Option("--key", help="The certificate's private key, PEM.", rich_help_panel=PANEL)
]
UserOption = Annotated[str | None, typer.Option("--user", help="DICOMweb: the user's name.", rich_help_panel=PANEL)]
SecretFileOption = Annotated[
    Path | None,
    typer.Option(
        "--secret-file", rich_help_panel=PANEL,
        help="DICOMweb: a file with the user's password, or without --user a token (default: $WARDROUND_PACS_SECRET).",
    ),
]  # fmt: skip
OWN_AE_TITLE = "WARDROUND"


@dataclass(frozen=True)
class PacsChoice:
    """Which PACS a command names, and how it is spoken to, as it was typed."""

    pacs: str | None
    dicomweb: str | None
    ae_title: str
    tls: bool
    ca: Path | None
    certificate: Path | None
    key: Path | None
    user: str | None
    secret_file: Path | None
    receive_port: int | None = None

    def open(self) -> Archive:
        """Return the PACS. Raises UsageError when none, or more than one, is named, or an option is another's."""
        from client.pacs.address import Tls, checked_title, checked_url, read_peer, read_secret
        from client.pacs.dicomweb import WebPacs
        from client.pacs.dimse import DimsePacs, Own

        if (self.pacs is None) == (self.dicomweb is None):
            raise UsageError("name one PACS: --pacs AE@HOST:PORT or --dicomweb URL")
        tls = Tls(self.ca, self.certificate, self.key)
        if self.dicomweb is not None:
            if self.tls or self.receive_port is not None:
                raise UsageError("--tls and --receive-port are for --pacs: DICOMweb has TLS where its URL says https")
            secret = read_secret(self.user, self.secret_file)
            return WebPacs(checked_url(self.dicomweb, secret), tls, secret)
        if self.user is not None or self.secret_file is not None:
            raise UsageError(
                "--user and --secret-file are for --dicomweb: with --pacs, TLS certificates say who is who"
            )
        if not self.tls and tls != Tls():
            raise UsageError("--ca, --certificate and --key are for TLS: add --tls")
        own = Own(checked_title(self.ae_title), tls if self.tls else None, self.receive_port)
        return DimsePacs(read_peer(self.pacs or ""), own)


def fetch_and_import(
    kit: Kit,
    collection: str,
    archive: Archive,
    query: Query,
    labels: Path | None,
    options: ImportOptions,
    *,
    as_json: bool,
) -> None:
    """Run `site import` of a PACS: show what comes, print the report, and end as failed when objects are missing."""
    from client.pacs.fetch import import_from_pacs

    with archive, _progress("object") as shown:
        fetched, report = import_from_pacs(
            kit.folder, collection, archive, query, labels, options=options,
            watch=lambda done, found, size: shown(done, found, f"{size / 1e6:.1f} MB"),
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps({"fetched": asdict(fetched), **report.as_dict()}, indent=1))
    else:
        typer.echo(
            f"{archive.name}: {fetched.found} objects found, {fetched.before} were here, {fetched.received} received "
            f"({fetched.bytes / 1e6:.1f} MB)"
        )
        typer.echo("\n".join(report.lines()))
    if fetched.missing:
        why = "; ".join(f"{count}: {reason}" for reason, count in fetched.problems.items())
        raise LinkError(f"{archive.name}: {fetched.missing} objects did not come ({why}): run it again to get them")


def listen(
    collection: Annotated[str, typer.Option(help="The collection that what is sent goes into.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0: any free one.")],
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    ae_title: Annotated[str, typer.Option("--ae-title", help="The AE title that senders must call.")] = OWN_AE_TITLE,
    calling: Annotated[
        list[str] | None, typer.Option("--from", metavar="AE", help="Let only this AE title send (repeatable).")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="CSV with a patient or study column and a label column; read at each import.")
    ] = None,
    label_column: Annotated[str, typer.Option(help="The label file's column of labels.")] = "label",
    allow_identified: Annotated[
        bool, typer.Option("--allow-identified", help="Index objects whose headers identify the patient.")
    ] = False,
    allow_burned_in: Annotated[
        bool,
        typer.Option("--allow-burned-in", help="Index objects that say that annotation is burned into the pixels."),
    ] = False,
    deidentify: DeidentifyOption = False,
    clean_pixels: CleanPixelsOption = False,
    tls: Annotated[bool, typer.Option("--tls", help="Listen with TLS: with --certificate and --key.")] = False,
    ca: Annotated[Path | None, typer.Option(help="Let only those in whose certificate this authority signed.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="This side's TLS certificate, PEM.")] = None,
    key: Annotated[Path | None, typer.Option(help="The certificate's private key, PEM.")] = None,
    kit: KitOption = None,
) -> None:
    """Receive objects that a PACS or a scanner sends (C-STORE) and import them into a collection, until Ctrl-C.

    Objects are kept in the kit, and the collection is updated when the sending has ended. Without --from, anybody on
    this machine may send; an AE title is no proof of who it is, a certificate (--tls, --ca) is.

    Example: wardround site listen --kit north --collection brain --port 11112
             storescu -aec WARDROUND 127.0.0.1 11112 image.dcm
    """
    from client.intake.importer import ImportOptions
    from client.pacs.address import Tls, checked_title
    from client.pacs.listen import Listening
    from client.pacs.listen import listen as receive
    from common.logs import log_to_stderr

    found = find_kit(kit, "site")
    files = Tls(ca, certificate, key)
    if not tls and files != Tls():
        raise UsageError("--ca, --certificate and --key are for TLS: add --tls")
    senders = tuple(checked_title(name) for name in calling or ())
    where = Listening(checked_title(ae_title), host, port, senders, files if tls else None)
    options = ImportOptions(
        allow_identified=allow_identified, allow_burned_in=allow_burned_in, label_column=label_column,
        deidentify=deidentify, clean_pixels=clean_pixels,
    )  # fmt: skip
    log_to_stderr()
    tally = receive(
        found.folder, collection, where, _stop_on_signal(), labels, options=options,
        on_ready=lambda number: typer.echo(f"listening as {where.ae_title} on {host}:{number}; Ctrl-C ends it"),
    )  # fmt: skip
    typer.echo(tally.line())


def send(
    files: Annotated[list[Path], typer.Argument(help="DICOM files, or folders of them: SEG, SR, secondary captures.")],
    pacs: PacsOption = None,
    dicomweb: DicomwebOption = None,
    ae_title: AeTitleOption = OWN_AE_TITLE,
    tls: TlsOption = False,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    user: UserOption = None,
    secret_file: SecretFileOption = None,
    kit: KitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send results to the hospital's own PACS (C-STORE or STOW-RS). Nothing goes to the coordinator.

    Example: wardround site send --kit north --pacs ORTHANC@pacs.example.org:4242 results/
    """
    from client.pacs.deliver import send_to_pacs

    found = find_kit(kit, "site")
    choice = PacsChoice(pacs, dicomweb, ae_title, tls, ca, certificate, key, user, secret_file)
    with choice.open() as archive, _progress("file") as shown:
        done = send_to_pacs(found.folder, archive, files, lambda count, of: shown(count, of, ""))
    refused = [one for one in done if one.problem]
    if as_json:
        typer.echo(json.dumps([{"file": str(one.file.path), "problem": one.problem} for one in done], indent=1))
    else:
        typer.echo(f"{archive.name}: {len(done) - len(refused)} of {len(done)} files sent")
        for one in refused:
            typer.echo(f"  {one.file.path}: {one.problem}")
    if refused:
        raise LinkError(f"{archive.name}: the PACS did not take {len(refused)} of {len(done)} files")


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show on a terminal how far it is: yields a function of what is done, of what, and a remark."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn(f"{what}s"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[remark]}"))
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(what, total=None, remark="asking")
        yield lambda done, of, remark: progress.update(task, completed=done, total=of, remark=remark)


def _stop_on_signal() -> threading.Event:
    """Return an event that the first Ctrl-C sets; the second one ends at once."""
    stop = threading.Event()

    def on_signal(number: int, frame: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    return stop
