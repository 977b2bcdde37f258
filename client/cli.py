"""`wardround site ...`: a hospital's side. A thin skin: each command does what one function of the library does."""

from __future__ import annotations

import dataclasses
import json
import signal
import threading
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from client import dashboard_cli, pacs_cli, steward_cli
from client.options import CleanPixelsOption, DeidentifyOption, JsonOption, KitArgument, KitOption
from client.pacs_cli import (
    OWN_AE_TITLE,
    AeTitleOption,
    BodyPartOption,
    CaOption,
    CertificateOption,
    DatesOption,
    DicomwebOption,
    KeyOption,
    PacsChoice,
    PacsOption,
    PatientIdOption,
    ReceivePortOption,
    SecretFileOption,
    StudyOption,
    TlsOption,
    UserOption,
    fetch_and_import,
)
from common.errors import UsageError
from common.kit import find_kit

if TYPE_CHECKING:
    from client.releases import Release

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="A hospital's side: enrol, import images, check, start."
)


class PatientFrom(StrEnum):
    """Whose image a file without a header is."""

    FILE = "file"
    FOLDER = "folder"


@app.command()
def enrol(
    kit: KitArgument = None,
    certificate: Annotated[
        Path | None, typer.Option(help="The certificate that the coordinator sent back: install it.")
    ] = None,
    new_key: Annotated[
        bool, typer.Option("--new-key", help="Make a further key, to take the place of the present or a revoked one.")
    ] = False,
) -> None:
    """Make this site's private key here and a request for a certificate; later, install the certificate.

    Example: wardround site enrol kits/sites/north
             wardround site enrol kits/sites/north --certificate north.crt

    With --new-key the present key works on until the new one's certificate is installed.
    """
    from certs.enrol import accept
    from certs.enrol import enrol as make_request
    from certs.storage import write_together
    from client.policy import DEFAULT_POLICY, FILE_NAME

    found = find_kit(kit, "site")
    if certificate is not None and new_key:
        raise UsageError("--certificate installs an answer, --new-key asks for one: one at a time")
    if certificate is not None:
        accept(found, certificate)
        typer.echo(f"{found.name}: certificate installed. Next: wardround site check --kit {found.folder}")
        return
    request = make_request(found, new_key=new_key)
    policy = found.folder / FILE_NAME
    if not policy.exists():
        write_together({policy: DEFAULT_POLICY.encode()})
    typer.echo(f"{found.name}: private key made; it never leaves {found.folder}")
    typer.echo(f"Send {request} to the coordinator. It answers with a certificate: then run this with --certificate.")
    typer.echo(f"What jobs may do here stands in {policy}: read it, and name the collections you allow.")


def _pair(text: str) -> tuple[str, str]:
    """FOUND=NAME as a pair."""
    found, sign, name = (part.strip() for part in text.partition("="))
    if not (found and sign and name):
        raise UsageError(f'--structure "{text}": write what stands in the mask, "=", and what it means: 1=liver')
    return found, name


@app.command("import")
def import_(
    collection: Annotated[str, typer.Option(help="The collection's name, as jobs will call it.")],
    folder: Annotated[
        Path | None,
        typer.Argument(help="A folder of DICOM, NIfTI, PNG, JPEG or raw MR files, read recursively; or a table (CSV)."),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="CSV with a patient, study or file column and a label column.")
    ] = None,
    label_tag: Annotated[
        str, typer.Option(metavar="KEYWORD", help="Take labels from this DICOM attribute, e.g. ViewPosition.")
    ] = "",
    label_reports: Annotated[
        bool, typer.Option("--label-reports", help="Take labels from the folder's DICOM Structured Reports (TID 1500).")
    ] = False,
    allow_identified: Annotated[
        bool,
        typer.Option(
            "--allow-identified", help="Index files whose headers identify the patient (only pseudonyms are kept)."
        ),
    ] = False,
    allow_burned_in: Annotated[
        bool, typer.Option("--allow-burned-in", help="Index files that say that annotation is burned into the pixels.")
    ] = False,
    deidentify: DeidentifyOption = False,
    clean_pixels: CleanPixelsOption = False,
    key_column: Annotated[
        str | None, typer.Option(help="The label file's key column (default: patient, study or file, as it has).")
    ] = None,
    label_column: Annotated[str, typer.Option(help="The label file's, or the table's, column of labels.")] = "label",
    column: Annotated[
        list[str] | None, typer.Option(help="A table's columns of features (repeatable; default: all that can be).")
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            help="A folder of masks (NIfTI, PNG) that lie as the images do, or of DICOM SEG and RTSTRUCT objects."
        ),
    ] = None,
    structure: Annotated[
        list[str] | None,
        typer.Option(metavar="FOUND=NAME", help="What a mask's value or an object's name means (repeatable): 1=liver."),
    ] = None,
    instances: Annotated[
        str, typer.Option(metavar="NAME", help="The masks are instance maps: each value above 0 is one object of NAME.")
    ] = "",
    boxes: Annotated[
        Path | None,
        typer.Option(help="Boxes: CSV (file, label, x_min, y_min, x_max, y_max), COCO's JSON, or VOC's folder."),
    ] = None,
    patient_from: Annotated[
        PatientFrom,
        typer.Option(
            help='Whose a file is that does not say it (PNG, JPEG, NIfTI): each "file" a patient, or each "folder".'
        ),
    ] = PatientFrom.FILE,
    modality: Annotated[list[str] | None, typer.Option(help="Take only these DICOM modalities (repeatable).")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the split by patient, at the first import.")] = None,
    pacs: PacsOption = None,
    dicomweb: DicomwebOption = None,
    body_part: BodyPartOption = "",
    dates: DatesOption = "",
    patient_id: PatientIdOption = "",
    study: StudyOption = "",
    ae_title: AeTitleOption = OWN_AE_TITLE,
    receive_port: ReceivePortOption = None,
    tls: TlsOption = False,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    user: UserOption = None,
    secret_file: SecretFileOption = None,
    workers: Annotated[
        int, typer.Option(help="Processes that read files (0: as many as are worthwhile, at most 8).")
    ] = 0,
    kit: KitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Index a folder of images, the rows of a table, or what a PACS has, under pseudonyms. Importing again is safe.

    Nothing leaves. Images stay where they are; those of a PACS are kept in the kit, and only what is missing is asked
    for again. Files that identify a patient are refused, unless --deidentify makes copies of all that do not, or
    --allow-identified takes them as they are. Of a table the kit gets a record a row, without columns that name people,
    hold dates or free text. Its labels are in a column of its own; a column "patient" says whose a row is, and a row
    that lacks a value is refused. In a table or a label file a column "split" (train, validation, test) keeps a
    published split.

    Example: wardround site import --collection chest-xray /data/chest --labels labels.csv
             wardround site import --collection heart heart.csv --label-column disease --column age --column sex
             wardround site import --collection liver /data/ct --masks /data/masks --structure 1=liver
             wardround site import --collection brain --pacs ORTHANC@pacs:4242 --modality MR --dates 20200101-20201231
    """
    from client.intake.importer import ImportOptions, import_folder
    from client.record import note_import, site_log

    if sum(source is not None for source in (folder, pacs, dicomweb)) != 1:
        raise UsageError("import takes one source: a FOLDER, --pacs AE@HOST:PORT or --dicomweb URL")
    found = find_kit(kit, "site")
    options = ImportOptions(
        allow_identified=allow_identified,
        allow_burned_in=allow_burned_in,
        key_column=key_column,
        label_column=label_column,
        patient_from="folder" if patient_from is PatientFrom.FOLDER else "file",
        modalities=tuple(modality or ()) if folder is not None else (),  # a PACS is asked for no others
        columns=tuple(column or ()),
        label_tag=label_tag,
        label_reports=label_reports,
        masks=masks,
        boxes=boxes,
        structures=tuple(_pair(text) for text in structure or ()),
        instances=instances,
        seed=seed,
        workers=workers,
        deidentify=deidentify,
        clean_pixels=clean_pixels,
    )
    if folder is None:
        from client.pacs.query import Query

        query = Query(tuple(modality or ()), body_part, dates, patient_id, study)
        choice = PacsChoice(
            pacs, dicomweb, ae_title, tls, ca, certificate, key, user, secret_file, receive_port
        )  # fmt: skip
        fetch_and_import(found, collection, choice.open(), query, labels, options, as_json=as_json)
        return
    report = import_folder(found.folder, collection, folder, labels, options=options, progress=None)
    note_import(site_log(found.folder), report)
    typer.echo(report.to_json() if as_json else "\n".join(report.lines()))


@app.command()
def start(
    kit: KitArgument = None,
    device: Annotated[str, typer.Option(help='Where to train: "auto", "cpu" or "cuda".')] = "auto",
) -> None:
    """Run the site: connect to the coordinator, answer its jobs within the policy, reconnect for ever.

    Example: wardround site start kits/sites/north
    """
    from common.logs import log_to_stderr

    found = find_kit(kit, "site")
    log_to_stderr()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    from client.service import serve

    serve(found, device, stop)


@app.command()
def check(kit: KitOption = None, as_json: JsonOption = False) -> None:
    """Preflight: coordinator, clock, certificate, key, policy, GPU, shared memory, disk, data. Exit 1 if one fails.

    Example: wardround site check --kit kits/sites/north
    """
    from client.preflight import preflight

    findings = preflight(find_kit(kit, "site"))
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            mark = "[green]ok  [/green]" if finding.ok else "[red]FAIL[/red]"
            Console().print(f"{mark} [bold]{finding.what}[/bold]: {finding.detail}", highlight=False, soft_wrap=True)
            if finding.remedy:
                Console().print(f"     -> {finding.remedy}", highlight=False, soft_wrap=True)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def baseline(
    job: Annotated[Path, typer.Argument(help="The job's TOML file.")],
    kit: KitOption = None,
    device: Annotated[str, typer.Option(help='Where to train: "auto", "cpu" or "cuda".')] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train the job's network on this site's own data alone, for comparison. Nothing leaves the site.

    Example: wardround site baseline job.toml
    """
    from client.baseline import train_alone
    from client.site import Site
    from common.job import read_job

    result = train_alone(Site.open(find_kit(kit, "site").folder, device), read_job(job))
    if as_json:
        typer.echo(json.dumps(result.metrics | {"rounds": result.rounds}))
        return
    table = Table("metric on the test split", "value")
    for name, value in result.metrics.items():
        table.add_row(name.removeprefix("eval."), f"{value:.4g}")
    Console().print(table)


@app.command()
def show(kit: KitOption = None, as_json: JsonOption = False) -> None:
    """Show what is indexed here, by collection: images and patients by split and label.

    Example: wardround site show --json
    """
    from client.catalog import CATALOG_FILE, Catalog

    catalog = Catalog(find_kit(kit, "site").folder / CATALOG_FILE)
    summaries = {name: catalog.summary(name) for name in catalog.collections()}
    if as_json:
        typer.echo(json.dumps({name: dataclasses.asdict(summary) for name, summary in summaries.items()}, indent=2))
        return
    if not summaries:
        typer.echo("Nothing is indexed yet: wardround site import --collection NAME FOLDER")
    for name, summary in summaries.items():
        typer.echo(f"{name}: {summary.images} images of {summary.patients} patients; {summary.refused} files refused")
        labels = list(summary.labels)
        table = Table("split", "patients", "images", *labels)
        for split, counts in summary.splits.items():
            by_label = [str(counts.labels.get(label, 0)) for label in labels]
            table.add_row(split, str(counts.patients), str(counts.images), *by_label)
        Console().print(table)


@app.command()
def releases(kit: KitOption = None, as_json: JsonOption = False) -> None:
    """List every message that left this site: when, to whom, for which run, its fields, bytes, SHA-256, epsilon so far.

    Example: wardround site releases --json
    """
    from client.releases import read

    found = read(find_kit(kit, "site").folder)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(release) for release in found], indent=2))
        return
    if not found:
        typer.echo("No message has left this site yet.")
        return
    for run, messages in groupby(found, key=lambda release: release.run):
        _print_releases(run, list(messages))
    typer.echo("Each with the names of its fields, whole SHA-256 and job digest: --json")


def _print_releases(run: str, messages: list[Release]) -> None:
    to = ", ".join(sorted({message.to for message in messages if message.to})) or "nobody"
    columns = "when (UTC)", "round", "kind", "status", "fields", "bytes", "SHA-256", "epsilon"
    table = Table(*columns, title=f"{run or 'outside any run'}, to {to}", box=None, padding=(0, 1, 0, 0))
    table.title_justify = "left"
    for message in messages:
        epsilon = "" if message.epsilon is None else f"{message.epsilon:.3f}"
        when, fields = message.at[:19].replace("T", " "), str(len(message.fields))
        size, digest = f"{message.bytes:,}", message.sha256[:8]
        table.add_row(when, str(message.round), message.kind, message.status, fields, size, digest, epsilon)
    Console().print(table)


for command in (
    pacs_cli.listen,
    pacs_cli.send,
    steward_cli.policy,
    steward_cli.jobs,
    steward_cli.approve,
    steward_cli.deny,
    steward_cli.budget,
    dashboard_cli.dashboard,
):
    app.command()(command)
