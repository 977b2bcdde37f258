"""What the tests of the PACS share: an Orthanc that has studies, a kit, and the command as a process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the tests' own PACS

from hospital_pacs import DEADLINE, ORTHANC, PLUGIN, PROJECT, Orthanc, answers, free_port, line_of, wait_for

from client.pacs.address import read_peer


@pytest.fixture(scope="module")
def orthanc_program() -> None:
    if not Path(ORTHANC).exists() or not PLUGIN.exists():
        pytest.skip("Orthanc is not installed: apt-get install orthanc orthanc-dicomweb")


@pytest.fixture(scope="module")
def dcmtk() -> None:
    if shutil.which("storescu") is None or shutil.which("dcmqrscp") is None:
        pytest.skip("DCMTK's tools are not installed: apt-get install dcmtk")


@pytest.fixture(scope="module")
def brain(shared_data) -> Path:
    """One patient's brain MRI: 128 files of five series in one study of 21 January 2020."""
    return shared_data / "brain_mri_dicom"


@pytest.fixture(scope="module")
def small(brain) -> list[Path]:
    """Of the study 8 FLAIR slices (body part BRAIN) and 6 of a crop; and another patient's CT of 2004."""
    from pydicom.data import get_testdata_file

    flair, crop = (sorted((brain / name).iterdir()) for name in ("36468-FLAIRreg-58706", "11_HCropVolume"))
    return [*flair[:8], *crop[:6], Path(str(get_testdata_file("CT_small.dcm")))]


@pytest.fixture(scope="module")
def orthanc(orthanc_program, small, tmp_path_factory):
    pacs = Orthanc(tmp_path_factory.mktemp("pacs") / "orthanc").start()
    try:
        pacs.give(small)
        yield pacs
    finally:
        pacs.stop()


@pytest.fixture(scope="module")
def dcmtk_archive(dcmtk, tmp_path_factory):
    """DCMTK's archive, empty: its address, and the port here to which it sends what is moved to WARDROUND."""
    folder = tmp_path_factory.mktemp("dcmqrscp")
    (folder / "db").mkdir()
    port, move = free_port(), free_port()
    (folder / "config").write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 16\n"
        f"HostTable BEGIN\nsite = (WARDROUND, localhost, {move})\nHostTable END\nVendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nARCHIVE {folder / 'db'} RW (500, 1024mb) ANY\nAETable END\n"
    )
    process = subprocess.Popen(
        ["dcmqrscp", "-c", str(folder / "config")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: answers(port), "dcmqrscp answers")
        yield read_peer(f"ARCHIVE@localhost:{port}"), move
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def kit(kit_folder, write_kit) -> Path:
    return write_kit(kit_folder)


@pytest.fixture
def wardround(kit):
    """Run `wardround site ...` on the kit as a process of its own."""

    def run(command: str, *arguments: object, environment: dict | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            line_of(command, *arguments, "--kit", kit), cwd=PROJECT, capture_output=True, text=True, check=False,
            timeout=DEADLINE, env={**os.environ, **(environment or {})},
        )  # fmt: skip

    return run
