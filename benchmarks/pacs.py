"""How long results take to be back in a PACS, and whether any is lost when the PACS is killed.

    python benchmarks/pacs.py [--studies 1000] [--size 256] [--run RUN]

An Orthanc of this machine is the PACS, where one is installed (`make pacs`); the radiographs are
generated. First two studies lie in the PACS: `pull` and `push` fetch, score and send back; then the
PACS forwards them to `serve`. Both are timed until the results are found in the PACS and fetched
from it again. Then as many studies as asked for, of one image each, are sent to `serve`, and the
PACS is killed (SIGKILL) when it has a third of the results, and started again ten seconds later.
Without `--run` the model is a PCA of generated images: what is measured is the way, not the model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import numpy as np
from pydicom.uid import generate_uid

import dicom_studies
from normalis import AnomalyDetector
from normalis.pacs.peer import peer_at
from pacs_peers import Orthanc, find_orthanc, free_port, orthanc
from serve_process import Service, serving

_TOGETHER = 50  # images of one association, as a router sends them
_DOWN_S = 10


def film(size: int, seed: int) -> Any:
    """Return a radiograph of a patient and study of its own."""
    pixels = dicom_studies.lesion_slices(size, slices=1, seed=seed)[0]
    shared = dicom_studies.study(f"P{seed:05d}")
    return dicom_studies.image("DX", pixels, shared, series=generate_uid())


def fitted(folder: Path, size: int) -> Path:
    """Fit a PCA on generated radiographs; return its run."""
    normals = np.stack([film(size, 10**6 + k).pixel_array for k in range(40)]).astype("float32")
    detector = AnomalyDetector(method="pca", image_size=64, window=(0, 4095), fpr=0.2)
    return detector.fit(normals).fitted_.save(folder / "run")


def normalis(*arguments: object) -> float:
    """Run a command; return its seconds."""
    before = time.perf_counter()
    command = [sys.executable, "-m", "normalis", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return time.perf_counter() - before


def results(server: Orthanc) -> list[str]:
    """Return the UIDs of the results that the PACS has."""
    found = json.loads(server.get("/instances?expand"))
    return [
        one["MainDicomTags"]["SOPInstanceUID"]
        for one in found
        if one["MainDicomTags"]["SOPInstanceUID"].startswith("2.25.")
    ]


def fetched(server: Orthanc, studies: list[str]) -> int:
    """Return how many results come when the studies are fetched."""
    peer = peer_at(server.address)
    came = [str(data.SOPInstanceUID) for uid in studies for data in peer.fetch(uid)]
    return sum(uid.startswith("2.25.") for uid in came)


def round_trips(run: Path, folder: Path, size: int) -> Iterator[str]:
    """Yield a line for `pull` and `push`, and one for `serve`."""
    port = free_port()
    with orthanc({"NORMALIS": free_port(), "SERVICE": port}) as server:
        films = [film(size, k) for k in range(2)]
        peer_at(server.address).store(films)
        studies = [str(f.StudyInstanceUID) for f in films]
        out = folder / "pulled"
        pull_s = normalis("pull", run, "--pacs", server.address, "--out", out, "--device", "cpu")
        push_s = normalis("push", out / "scored", "--pacs", server.address)
        yield (
            f"pull of 2 studies {pull_s:.1f} s, push {push_s:.1f} s: {len(results(server))} "
            f"results in the PACS, {fetched(server, studies)} fetched again"
        )
    with orthanc({"NORMALIS": free_port(), "SERVICE": port}) as server:
        peer_at(server.address).store(films)
        more = ("--pacs", server.address)
        with serving(run, folder / "served", *more, quiet=2.0, dicom=port) as service:
            before = time.perf_counter()
            asked = {"Resources": json.loads(server.get("/studies")), "LocalAet": "ORTHANC"}
            server.get("/modalities/service/store", json.dumps(asked).encode())
            service.wait(service.done)
            took = time.perf_counter() - before
            yield (
                f"serve: {took:.1f} s from the first image forwarded to the last result kept, 2 s "
                f"of them silence: {len(results(server))} results in the PACS, "
                f"{fetched(server, studies)} fetched again"
            )


def send(service: Service, number: int, size: int) -> float:
    """Send images to the service; return the seconds that sending took."""
    peer, took = peer_at(service.address), 0.0
    for start in range(0, number, _TOGETHER):
        films = [film(size, k) for k in range(start, min(start + _TOGETHER, number))]
        before = time.perf_counter()
        told = peer.store(films)
        took += time.perf_counter() - before
        if any(one.state != "sent" for one in told):
            raise SystemExit(f"not taken: {[one.problem for one in told if one.problem]}")
    return took


def processor_s(process: int) -> float:
    """Return the processor seconds that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(process: int) -> float:
    """Return the largest resident memory of a process."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return float("nan")


def many(run: Path, folder: Path, number: int, size: int) -> Iterator[str]:
    """Yield lines about many studies, and a PACS that is killed among them."""
    with (
        orthanc() as server,
        serving(run, folder / "many", "--pacs", server.address, quiet=5.0) as service,
    ):
        before = time.perf_counter()
        sending = send(service, number, size)
        yield f"{number} images of {size} x {size} taken in {sending:.1f} s of sending"
        service.wait(lambda: len(results(server)) >= number // 3, 3000)
        server.kill()
        time.sleep(_DOWN_S)
        server.start()
        after = len(results(server))
        service.wait(service.done, 3000)
        took = time.perf_counter() - before
        ((objects,),) = service.rows("SELECT COUNT(*) FROM outbox")
        there = results(server)
        known = {uid for (uid,) in service.rows("SELECT sop FROM outbox")}
        yield (
            f"PACS killed with {after} results and {_DOWN_S} s away; all done {took:.0f} s after "
            f"the first image: {objects} results made, {len(there)} in the PACS, "
            f"{len(known - set(there))} missing, {len(there) - len(set(there))} double"
        )
        used = processor_s(service.process.pid)
        yield (
            f"the service used {used:.0f} s of processor, {1000 * used / number:.0f} ms a study, "
            f"and {peak_mib(service.process.pid):.0f} MiB of memory at most"
        )
        yield from pages(service)


def pages(service: Service) -> Iterator[str]:
    """Yield how long the pages take."""
    for name, path in (("worklist", "/"), ("study", _first(service)), ("health", "/health")):
        times = []
        for _ in range(5):
            before = time.perf_counter()
            size = len(service.get(path))
            times.append(time.perf_counter() - before)
        yield f"{name} page: {1000 * sorted(times)[2]:.0f} ms, {size / 1000:.0f} kB"


def _first(service: Service) -> str:
    key = service.get("/").split(b'href="/study/')[1].split(b'"')[0].decode()
    return f"/study/{key}"


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--run", type=Path)
    given = parser.parse_args()
    if find_orthanc() is None:
        raise SystemExit("Orthanc is not installed: make pacs")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start", flush=True)
    with tempfile.TemporaryDirectory(prefix="normalis-pacs-") as name:
        folder = Path(name)
        run = given.run or fitted(folder, given.size)
        for line in round_trips(run, folder, given.size):
            print(line, flush=True)
        for line in many(run, folder, given.studies, given.size):
            print(line, flush=True)
    print(f"load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
